"""BlinkDL's names: what kind of tensor each one is, and the canonical shape of its kind."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

UNUSED_IN_BLOCK_0 = frozenset(f"blocks.0.att.v{n}" for n in "012")
"""Some releases carry them, though block 0 has no value residual."""

SHIFTS = "rwkvag"
"""The six token-shift vectors of the time-mix, in the order in which other containers merge them."""

_VECTOR = re.compile(r"blocks\.\d+\.(att\.(x_[rwkvag]|[wav]0|k_k|k_a)|ffn\.x_k)")
_LORA = re.compile(r"blocks\.\d+\.att\.[wavg][12]")


def is_vector(name: str) -> bool:
    """Whether releases store this vector as ``[1, 1, C]``; those of layer norms are ``[C]`` everywhere."""
    return _VECTOR.fullmatch(name) is not None


def is_lora(name: str) -> bool:
    """Whether this is half of a low-rank pair: ``[C, rank]`` or ``[rank, C]``, where other containers transpose."""
    return _LORA.fullmatch(name) is not None


def flat_vectors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with vectors that were stored as ``[1, 1, C]`` or the like as ``[C]``."""
    return {
        name: tensor.flatten() if is_vector(name) and tensor.numel() == max(tensor.shape) else tensor
        for name, tensor in tensors.items()
    }
