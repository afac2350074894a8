"""The whole graph with its states in float16 between calls, at half the device memory; inside they stay in float32.

The compiler strips a cast at the border of a graph (``--quant_input``, ``--quant_output``), but only where the first
operation on an input, or the last on an output, is one of float16. What computes with the states is marked as float32,
and a reshape has no type of its own; so each state passes through a bound of float16, at either end. It keeps what
float16 can hold as it is, and what is too large for that finite.

So a state is rounded once a call. With the recurrence itself in float16 it would be rounded several times a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compile.graphs.model import Rwkv7
from compile.spec import Quantization

if TYPE_CHECKING:
    from torch import Tensor

COMPUTED_IN_F16 = frozenset({Quantization.F16, Quantization.W8F16, Quantization.W4F16})
"""Precisions whose arithmetic is float16, which is what makes the bound one of float16."""

_LARGEST = torch.finfo(torch.float16).max


class Rwkv7HalfState(Rwkv7):
    """The chunk-parallel graph with a bound of float16 around its states."""

    def forward(self, token: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """As :class:`Rwkv7`."""
        logits, *after = super().forward(token, *map(_bounded, states))
        return logits, *map(_bounded, after)


def _bounded(state: Tensor) -> Tensor:
    return torch.clamp(state, -_LARGEST, _LARGEST)
