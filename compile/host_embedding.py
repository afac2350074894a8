"""Whole graphs that take rows of the embedding in place of token ids: the table stays on the host.

A table is as large as the head, and of it a call reads one row a token. Left on the host, it takes no memory of the
device and no operation of the graph; each call sends ``T * C`` floats in place of ``T`` integers. The table has the
layer norm behind it applied, as the one inside has, since that depends on the token alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compile.graphs.model import Rwkv7, embedding
from compile.half_state import Rwkv7HalfState
from compile.unfused import Rwkv7Unfused

if TYPE_CHECKING:
    import numpy as np

    from compile.dims import Arrays


class Rwkv7HostEmbedding(Rwkv7):
    """The chunk-parallel graph whose first input is ``embedding``, float32 ``[1, T, C]``: rows of the host's table."""

    def __init__(self, arrays: Arrays, *, T: int, every_position: bool, weight_group: int = 1) -> None:
        """As :class:`Rwkv7`."""
        super().__init__(arrays, T=T, every_position=every_position, weight_group=weight_group)
        del self.emb
        self.add_module("emb", _Given())

    def example_inputs(self) -> dict[str, Tensor]:
        """Zeros for ``embedding`` and the states."""
        _, *states = super().example_inputs().items()
        return {"embedding": torch.zeros(1, self.T, self.dims.C), **dict(states)}


class _Given(nn.Module):
    """In the table's place: the row of a row is itself."""

    def __getitem__(self, rows: Tensor) -> Tensor:
        return rows


class Rwkv7UnfusedHostEmbedding(Rwkv7HostEmbedding, Rwkv7Unfused):
    """The same of the graph whose ReLU the compiler does not lose."""


class Rwkv7HalfStateHostEmbedding(Rwkv7HostEmbedding, Rwkv7HalfState):
    """The same of the graph with states in float16."""


HOST_EMBEDDING: dict[type[Rwkv7], type[Rwkv7]] = {
    Rwkv7: Rwkv7HostEmbedding,
    Rwkv7Unfused: Rwkv7UnfusedHostEmbedding,
    Rwkv7HalfState: Rwkv7HalfStateHostEmbedding,
}
"""The graphs that can be had so, by what they are with the table inside."""


def host_table(arrays: Arrays) -> np.ndarray:
    """The table that their nets are fed from: ``[V, C]`` float32, a row for each token id."""
    table: np.ndarray = embedding(arrays, torch.float32).numpy()
    return table


def table_of(graph: type[Rwkv7], arrays: Arrays) -> np.ndarray | None:
    """The same for nets of *graph*; None where the table is in them."""
    return host_table(arrays) if issubclass(graph, Rwkv7HostEmbedding) else None
