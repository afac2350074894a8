"""Sizes of a model, read from the arrays that the graphs are fed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        heads = [name for name in arrays if name.endswith(".att.r_k")]  # arrays may be read as they are asked for
        H, N = arrays[heads[0]].shape
        V = len(arrays["emb.weight"]) if "emb.weight" in arrays else 0
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
