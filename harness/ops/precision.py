"""The compiler's precisions, as far as an operation's expected value depends on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from reference.precision import GROUP, coded

if TYPE_CHECKING:
    from compile.spec import Quantization
    from harness.ops.block import Arrays


def rounded(x: np.ndarray, precision: Quantization) -> np.ndarray:
    """Round values as they are stored between operations, to nearest, ties to even; given back as float64."""
    kind = precision.value.rpartition("W8")[2].rpartition("W4")[2]
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    return np.asarray(torch.from_numpy(np.asarray(x, np.float64)).to(dtype).to(torch.float64).numpy())


def with_codes(weights: Arrays, matrices: tuple[str, ...], precision: Quantization) -> dict[str, np.ndarray]:
    """The weights with their *matrices*, float32 ``[in, out]``, as the codes of a precision stand for them.

    A matrix whose inputs the group of codes does not divide is coded with one group for each of its outputs.
    """
    bits = precision.weight_bits
    if not bits:
        return dict(weights)
    return {name: _coded(w, bits) if name in matrices else w for name, w in weights.items()}


def _coded(matrix: np.ndarray, bits: int) -> np.ndarray:
    whole = len(matrix) % GROUP == 0
    return np.asarray(coded(torch.from_numpy(matrix), bits).numpy()) if whole else matrix
