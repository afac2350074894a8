"""What a building block is: its inputs and weights, its formula in float64, and the idioms that exporters write."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from harness.ops.graph import Graph

Arrays = Mapping[str, np.ndarray]
Keep = Callable[[np.ndarray], np.ndarray]
"""What storing an intermediate value keeps of it: everything, or what a number format has."""


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """Sizes of a block: T tokens, H heads of N channels."""

    T: int
    H: int
    N: int

    @property
    def C(self) -> int:  # noqa: N802 - as in the formulas
        """Channels."""
        return self.H * self.N

    def __str__(self) -> str:
        """As in ids: ``16x4x64``."""
        return f"{self.T}x{self.H}x{self.N}"


Idiom = Callable[[Graph, Mapping[str, str], Arrays, Shape], list[str]]
"""Writes the block into a graph, from its inputs by name and its weights; gives the names of the outputs."""


def exact(x: np.ndarray) -> np.ndarray:
    """Keep everything."""
    return x


@dataclass(frozen=True, kw_only=True)
class Block:
    """One building block.

    Attributes:
        name: as in ids.
        inputs: makes what goes in at run time, float32 or int32.
        weights: makes the constants, float32.
        matrices: which of the weights are matrices ``[in, out]``: the W formats keep them in codes.
        formula: the outputs, from inputs and weights in float64; its last argument is called on each intermediate
            value and on the outputs.
        idioms: ways to write it as ONNX, by name.
        opsets: of the idioms that need another one than the exporter's.
        tokens: the fewest tokens for which it makes sense.
    """

    name: str
    inputs: Callable[[Shape, np.random.Generator], dict[str, np.ndarray]]
    weights: Callable[[Shape, np.random.Generator], dict[str, np.ndarray]] = lambda _, __: {}
    matrices: tuple[str, ...] = ()
    formula: Callable[[Arrays, Arrays, Keep], list[np.ndarray]]
    idioms: Mapping[str, Idiom]
    opsets: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 1

    def data(self, shape: Shape) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Inputs and weights of a shape: the same for every idiom and precision."""
        rng = np.random.default_rng(zlib.crc32(f"{self.name}-{shape}".encode()))
        return self.inputs(shape, rng), self.weights(shape, rng)


def named(*idioms: Idiom) -> dict[str, Idiom]:
    """The idioms by the names of their functions."""
    return {idiom.__name__: idiom for idiom in idioms}


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normally distributed float32 numbers."""
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    return np.asarray(1 / (1 + np.exp(-x)))
