"""Sizes of a model, read from the arrays that the graphs are fed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compile.streamed import shapes_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """L layers of width C with H heads of size N, over V token ids: none of them where layers stand alone."""

    L: int
    C: int
    H: int
    N: int
    V: int

    @classmethod
    def of(cls, arrays: Arrays) -> Dims:
        """Read from ``blocks.*.att.r_k [H, N]`` and, where there is one, ``emb.weight [V, C]``."""
        shapes = shapes_of(arrays)  # the graph of each layer asks, and an embedding takes seconds to read
        heads = [name for name in shapes if name.endswith(".att.r_k")]
        H, N = shapes[heads[0]]
        V = shapes["emb.weight"][0] if "emb.weight" in shapes else 0
        return cls(L=len(heads), C=H * N, H=H, N=N, V=V)

    def state_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of every state tensor, in the order of a graph's inputs."""
        return [state for i in range(self.L) for state in self.layer_state_shapes(i)]

    def layer_state_shapes(self, i: int) -> list[tuple[str, tuple[int, ...]]]:
        """The same of layer i."""
        return [
            (f"blocks.{i}.att.shift", (1, 1, self.C)),
            (f"blocks.{i}.att.state", (self.H, self.N, self.N)),
            (f"blocks.{i}.ffn.shift", (1, 1, self.C)),
        ]
