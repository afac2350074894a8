"""Number formats of a compiled model, by their definitions: what they keep of a float32 tensor."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 64
"""Inputs of a matrix that share a step and a zero point in the W formats."""


class Precision(Enum):
    """The formats, by the names that the compiler gives them."""

    F16 = "F16"
    """IEEE 754 binary16 throughout."""

    BF16 = "BF16"
    """The upper half of IEEE 754 binary32 throughout."""

    W8F16 = "W8F16"
    """Matrices in 8 bits, with a step and a zero point for each output and 64 inputs; the rest F16."""

    W4F16 = "W4F16"
    """The same in 4 bits."""

    W8BF16 = "W8BF16"
    """Matrices in 8 bits as in W8F16, with steps in BF16; the rest BF16."""

    W4BF16 = "W4BF16"
    """The same in 4 bits."""

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, and of the steps of codes."""
        return torch.bfloat16 if self.value.endswith("BF16") else torch.float16

    def keep(self, x: Tensor) -> Tensor:
        """Round a float32 tensor as a stored activation is, to nearest, ties to even; beyond the range is infinity."""
        return x.to(self.dtype).to(torch.float32)

    def keep_matrix(self, W: Tensor, group: int = GROUP) -> Tensor:
        """Round a constant matrix W ``[in, out]`` of ``x W``, float32, and give back what it then stands for."""
        bits = {"W8": 8, "W4": 4}.get(self.value[:2])
        # A matrix that the groups do not divide stays in 16 bits.
        return self.keep(coded(W, bits, group, self.dtype) if bits and len(W) % group == 0 else W)

    def keep_rank(self, B: Tensor, group: int = GROUP) -> Tensor:
        """Round the second matrix ``[rank, out]`` of a LoRA pair: graphs fill its rank with zeros to whole groups."""
        return self.keep_matrix(pad(B, (0, 0, 0, -len(B) % group)), group)[: len(B)]


def coded(W: Tensor, bits: int, group: int = GROUP, step_dtype: torch.dtype = torch.float16) -> Tensor:
    """What an asymmetric code of some bits keeps of W ``[in, out]``: ``(q - z) s`` with whole q and z.

    With L = 2^bits - 1, each output and *group* consecutive inputs share a step ``s = (max - min) / L`` and a zero
    point ``z = round(-min / s)``, their range widened to contain 0. The code is ``q = round(w / s) + z``, kept
    in 0 to L; what is stored of s, and multiplied with, is of *step_dtype*.
    """
    levels = 2**bits - 1
    groups = W.reshape(-1, group, W.shape[1])
    low = groups.amin(dim=1, keepdim=True).clamp(max=0)
    high = groups.amax(dim=1, keepdim=True).clamp(min=0)
    step = (high - low) / levels
    zero = (-low / step).round()
    codes = ((groups / step).round() + zero).clamp(0, levels)
    kept = (codes - zero) * step.to(step_dtype).float()
    return torch.where(step > 0, kept, 0.0).reshape(W.shape)
