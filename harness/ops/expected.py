"""What an operation should give, and how far off something is: float64 throughout, independent of the ONNX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from compile.spec import Quantization
from harness.ops.block import exact
from harness.ops.precision import rounded, with_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.ops.block import Arrays, Block
    from harness.ops.case import OpCase


@dataclass(frozen=True, slots=True)
class Distance:
    """How far outputs are from what they should be; the worst of several outputs.

    Attributes:
        nmse: squared error over the energy of what should be; 1 is as bad as all zeros; NaN where a value is.
        peak: largest absolute error over the largest absolute value that should be.
    """

    nmse: float
    peak: float


@dataclass(frozen=True, slots=True)
class Expected:
    """The right outputs of a case.

    Attributes:
        plain: with the weights as they are.
        coded: with the weights that the precision's codes stand for; the same where it has none.
        emulated: distance from ``coded`` of the formula with every intermediate value rounded to the precision.
        emulated32: the same of float32, from ``plain``.
    """

    plain: list[np.ndarray]
    coded: list[np.ndarray]
    emulated: Distance
    emulated32: Distance


def expected(case: OpCase) -> Expected:
    """Compute it."""
    block = case.of_block
    inputs, weights = block.data(case.shape)
    kept = with_codes(weights, block.matrices, case.precision)
    wide = {name: array.astype(np.float64) for name, array in inputs.items()}
    plain, coded = (
        block.formula(wide, {name: array.astype(np.float64) for name, array in some.items()}, exact)
        for some in (weights, kept)
    )
    return Expected(
        plain,
        coded,
        emulated=distance(coded, _rounded(block, inputs, kept, case.precision)),
        emulated32=distance(plain, _rounded(block, inputs, weights, Quantization.F32)),
    )


def _rounded(block: Block, inputs: Arrays, weights: Arrays, precision: Quantization) -> list[np.ndarray]:
    """The formula with inputs, weights and every intermediate value rounded."""
    keep = partial(rounded, precision=precision)
    narrow = {name: keep(array) if array.dtype.kind == "f" else array for name, array in inputs.items()}
    return block.formula(narrow, {name: keep(array) for name, array in weights.items()}, keep)


def distance(should: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> Distance:
    """Compare outputs one by one.

    Raises:
        ValueError: another number of outputs, or another shape but for axes of length 1.
    """
    if len(should) != len(got):
        raise ValueError(f"{len(got)} outputs, but should be {len(should)}")
    worst = Distance(0.0, 0.0)
    for i, (right, array) in enumerate(zip(should, got, strict=True)):
        if [n for n in right.shape if n > 1] != [n for n in array.shape if n > 1]:
            raise ValueError(f"output {i} has shape {array.shape}, but should have {right.shape}")
        error = array.reshape(right.shape).astype(np.float64) - right
        found = Distance(float((error**2).sum() / (right**2).sum()), float(np.abs(error).max() / np.abs(right).max()))
        worst = Distance(_worse(worst.nmse, found.nmse), _worse(worst.peak, found.peak))
    return worst


def _worse(one: float, other: float) -> float:
    """NaN is worse than any number."""
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)
