"""Arrays that are read when they are asked for, each time anew: a large model is never in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from compile.dims import Arrays

_ELEMENT_BYTES = 4


class Streamed(Mapping[str, np.ndarray]):
    """A mapping of names to float32 arrays, of which nothing is kept.

    Attributes:
        shapes: of all arrays, by name; to be had without reading any.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]) -> None:
        """*read* gives an array by its name; where jobs go to other processes, it can be pickled."""
        self.shapes = dict(shapes)
        self._read = read

    def __getitem__(self, name: str) -> np.ndarray:
        """Read an array."""
        shape = self.shapes[name]  # a KeyError names what is missing
        array = self._read(name)
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(f"{name}: read {array.dtype} {array.shape}, but should be float32 {shape}")
        return array

    def __contains__(self, name: object) -> bool:
        """Whether there is one of that name; nothing is read."""
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.shapes)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.shapes)

    def only(self, names: list[str]) -> Streamed:
        """Those of these names."""
        return Streamed({name: self.shapes[name] for name in names}, self._read)


def shapes_of(arrays: Arrays) -> Mapping[str, tuple[int, ...]]:
    """Of all of them, by name, without reading any."""
    return arrays.shapes if isinstance(arrays, Streamed) else {name: array.shape for name, array in arrays.items()}


def float32_bytes(arrays: Arrays) -> int:
    """What all of them would take in memory at once."""
    return sum(_ELEMENT_BYTES * math.prod(shape) for shape in shapes_of(arrays).values())
