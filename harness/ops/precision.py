"""The compiler's precisions, as far as an operation's expected value depends on them."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import torch

from reference.precision import GROUP, coded

if TYPE_CHECKING:
    from harness.ops.block import Arrays


class OpPrecision(Enum):
    """What ``--quantize`` takes on BM1684X, by its name; without those that need a calibration."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    W8F16 = "W8F16"
    W4F16 = "W4F16"
    W8BF16 = "W8BF16"
    W4BF16 = "W4BF16"

    @property
    def weight_bits(self) -> int | None:
        """Bits of a matrix's codes; None where matrices are not coded."""
        return int(self.value[1]) if self.value.startswith("W") else None

    def keep(self, x: np.ndarray) -> np.ndarray:
        """Round values as they are stored between operations, to nearest, ties to even; given back as float64."""
        kind = self.value.rpartition("W8")[2].rpartition("W4")[2]
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        return np.asarray(torch.from_numpy(np.asarray(x, np.float64)).to(dtype).to(torch.float64).numpy())

    def coded(self, weights: Arrays, matrices: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The weights with their *matrices*, float32 ``[in, out]``, as the codes of this precision stand for them.

        A matrix whose inputs the group of codes does not divide is coded with one group for each of its outputs.
        """
        bits = self.weight_bits
        if bits is None:
            return dict(weights)
        return {name: _coded(w, bits) if name in matrices else w for name, w in weights.items()}


def _coded(matrix: np.ndarray, bits: int) -> np.ndarray:
    whole = len(matrix) % GROUP == 0
    return np.asarray(coded(torch.from_numpy(matrix), bits).numpy()) if whole else matrix
