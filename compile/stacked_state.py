"""Whole graphs whose states lie in two tensors, however many layers: shifts in one, WKV matrices in the other.

The firmware takes the launch of a net as one message, in which every input and output has its place. With three states
a layer, that of more than :data:`MOST_LAYERS` layers does not fit; stacked, every model has three inputs and three
outputs. What it costs is a copy: each layer takes its part out of the tensors, and at the end they are put together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compile.graphs.loop import Rwkv7Loop
from compile.graphs.model import Rwkv7
from compile.graphs.named import Named
from compile.half_state import Rwkv7HalfState
from compile.host_embedding import Rwkv7HalfStateHostEmbedding, Rwkv7HostEmbedding, Rwkv7UnfusedHostEmbedding
from compile.unfused import Rwkv7Unfused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compile.dims import Arrays, Dims

MOST_LAYERS = 33
"""The most that a launch's message holds with three states a layer, of a net with one group of commands."""


class Rwkv7StackedState(Rwkv7):
    """The chunk-parallel graph with two states: ``shift [2 L, 1, C]`` and ``state [L H, N, N]``.

    Of ``shift``, layer i has row 2 i for time-mix and 2 i + 1 for channel-mix; of ``state``, matrices i H to (i + 1) H.
    """

    f32 = True
    """What takes the stacks apart and puts them together is computed in float32, as the states are."""

    def __init__(self, arrays: Arrays, *, T: int, every_position: bool, weight_group: int = 1) -> None:
        """As :class:`Rwkv7`."""
        super().__init__(arrays, T=T, every_position=every_position, weight_group=weight_group)
        self.taken, self.shifts, self.matrices = (Named(f32=self.f32) for _ in range(3))

    def forward(self, token: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Token ids ``[1, T]`` and the 2 states -> logits ``[1, T or 1, V]`` and the 2 next states."""
        shifts, matrices = states
        H = self.dims.H
        apart = [
            self.taken(part)
            for i in range(self.dims.L)
            for part in (
                shifts[2 * i : 2 * i + 1],
                matrices[i * H : (i + 1) * H],
                shifts[2 * i + 1 : 2 * i + 2],
            )
        ]
        logits, *after = super().forward(token, *apart)
        return logits, *(name(stack) for name, stack in zip((self.shifts, self.matrices), _stacked(after), strict=True))

    def example_inputs(self) -> dict[str, Tensor]:
        """Zeros for what comes in for the tokens, and for the two states."""
        token, *_ = super().example_inputs().items()
        return dict([token]) | {name: torch.zeros(shape) for name, shape in stacked_shapes(self.dims).items()}

    def output_names(self) -> list[str]:
        """``logits`` and the two next states."""
        return ["logits", *(f"{name}.next" for name in stacked_shapes(self.dims))]


class Rwkv7LoopStackedState(Rwkv7StackedState, Rwkv7Loop):
    """The same of the plain loop over tokens."""


class Rwkv7UnfusedStackedState(Rwkv7StackedState, Rwkv7Unfused):
    """The same of the graph whose ReLU the compiler does not lose."""


class Rwkv7HalfStateStackedState(Rwkv7StackedState, Rwkv7HalfState):
    """The same with both stacks in float16 between calls."""

    f32 = False


class Rwkv7HostEmbeddingStackedState(Rwkv7StackedState, Rwkv7HostEmbedding):
    """The same with the embedding on the host."""


class Rwkv7UnfusedHostEmbeddingStackedState(Rwkv7StackedState, Rwkv7UnfusedHostEmbedding):
    """The same of the graph whose ReLU the compiler does not lose."""


class Rwkv7HalfStateHostEmbeddingStackedState(Rwkv7StackedState, Rwkv7HalfStateHostEmbedding):
    """The same with both stacks in float16 between calls."""

    f32 = False


STACKED_STATE: dict[type[Rwkv7], type[Rwkv7]] = {
    Rwkv7: Rwkv7StackedState,
    Rwkv7Loop: Rwkv7LoopStackedState,
    Rwkv7Unfused: Rwkv7UnfusedStackedState,
    Rwkv7HalfState: Rwkv7HalfStateStackedState,
    Rwkv7HostEmbedding: Rwkv7HostEmbeddingStackedState,
    Rwkv7UnfusedHostEmbedding: Rwkv7UnfusedHostEmbeddingStackedState,
    Rwkv7HalfStateHostEmbedding: Rwkv7HalfStateHostEmbeddingStackedState,
}
"""The graphs that can be had so, by what they are with three states a layer."""


def is_stacked(graph: type[Rwkv7]) -> bool:
    """Whether nets of *graph* have two states for all layers."""
    return issubclass(graph, Rwkv7StackedState)


def stacked_shapes(dims: Dims) -> dict[str, tuple[int, ...]]:
    """Of both states, by name, in the order of a graph's inputs."""
    return {"shift": (2 * dims.L, 1, dims.C), "state": (dims.L * dims.H, dims.N, dims.N)}


def _stacked(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([state for i, state in enumerate(states) if i % 3 != 1]), torch.cat(list(states[1::3]))
