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
    """L layers of width C with H heads of size N, over V token ids."""

    L: int
    C: int
    H: int
    N: int
    V: int

    @classmethod
    def of(cls, arrays: Arrays) -> Dims:
        """Read from ``emb.weight [V, C]`` and ``blocks.*.att.r_k [H, N]``."""
        V, C = arrays["emb.weight"].shape
        H, N = arrays["blocks.0.att.r_k"].shape
        L = 1 + max(int(name.split(".")[1]) for name in arrays if name.startswith("blocks."))
        return cls(L=L, C=C, H=H, N=N, V=V)

    def state_shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of every state tensor, in the order of a graph's inputs."""
        return [
            (f"blocks.{i}.{name}", shape)
            for i in range(self.L)
            for name, shape in (
                ("att.shift", (1, 1, self.C)),
                ("att.state", (self.H, self.N, self.N)),
                ("ffn.shift", (1, 1, self.C)),
            )
        ]
