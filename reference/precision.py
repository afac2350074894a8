"""Number formats of a compiled model, by their definitions: what they keep of a float32 tensor."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 64
"""Inputs that share a scale in a 4-bit matrix."""


class Precision(Enum):
    """The formats, by the names that the compiler gives them."""

    F16 = "F16"
    """IEEE 754 binary16 throughout."""

    BF16 = "BF16"
    """The upper half of IEEE 754 binary32 throughout."""

    W8F16 = "W8F16"
    """Matrices in 8 bits with a scale for each output; the rest F16."""

    W4F16 = "W4F16"
    """Matrices in 4 bits with scale and zero point for each output and group of 64 inputs; the rest F16."""

    def keep(self, x: Tensor) -> Tensor:
        """Round a float32 tensor as a stored activation is, to nearest, ties to even; beyond the range is infinity."""
        return x.to(torch.bfloat16 if self is Precision.BF16 else torch.float16).to(torch.float32)

    def keep_matrix(self, W: Tensor) -> Tensor:
        """Round a constant matrix W ``[in, out]`` of ``x W``, float32, and give back what it then stands for."""
        if self is Precision.W8F16:
            W = int8(W)
        elif self is Precision.W4F16 and len(W) % GROUP == 0:
            W = int4(W)  # a matrix that the groups do not divide stays F16
        return self.keep(W)


def int8(W: Tensor) -> Tensor:
    """What a symmetric 8-bit code keeps of W ``[in, out]``: ``q s``, q in -127 to 127, ``s = max |w| / 127``.

    The scale s is one for each output, stored in F16.
    """
    scale = (W.abs().amax(dim=0, keepdim=True) / 127).half().float()
    return torch.where(scale > 0, (W / scale).round().clamp(-127, 127) * scale, 0.0)


def int4(W: Tensor) -> Tensor:
    """What an asymmetric 4-bit code keeps of W ``[in, out]``: ``(q - z) s``, q and z in 0 to 15.

    Scale ``s = (max - min) / 15`` and zero point ``z = -min / s``, rounded, are those of an output and 64 consecutive
    inputs, the range widened to contain 0; s is stored in F16.
    """
    groups = W.reshape(-1, GROUP, W.shape[1])
    low = groups.amin(dim=1, keepdim=True).clamp(max=0)
    high = groups.amax(dim=1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 15).half().float()
    zero = torch.where(scale > 0, (-low / scale).round().clamp(0, 15), 0.0)
    codes = (groups / scale + zero).round().clamp(0, 15)
    return torch.where(scale > 0, (codes - zero) * scale, 0.0).reshape(W.shape)
