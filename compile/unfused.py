"""Graphs whose squared ReLU the compiler does not fuse into the product before it.

TPU-MLIR 1.30.2 fuses MatMul and ReLU, and in W8BF16 and W4BF16 then loses the ReLU: channel-mix squares what is
negative too. A product that is used twice is not fused: with relu(x) x in place of relu(x) relu(x), the same number, it
is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compile.graphs.block import Rwkv7Block
from compile.graphs.model import Block, ChannelMix, Rwkv7
from compile.spec import Quantization

if TYPE_CHECKING:
    from torch import Tensor


LOSES_RELU = frozenset({Quantization.W8BF16, Quantization.W4BF16})
"""Where the compiler loses it."""


class UnfusedChannelMix(ChannelMix):
    """Channel-mix with the square of its ReLU as a product of the ReLU and what it was taken of."""

    def activation(self, key: Tensor) -> Tensor:
        """Squared ReLU."""
        return torch.relu(key) * key


class _Block(Block):
    channel_mix = UnfusedChannelMix


class Rwkv7Unfused(Rwkv7):
    """The chunk-parallel graph with it."""

    block = _Block


class Rwkv7BlockUnfused(Rwkv7Block):
    """The same of one layer alone."""

    block = _Block
