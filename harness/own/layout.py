"""How a state lies in a tensor, as a map writes it: ``head value key``, ``layer 0/2 channel``, ``(head value) key``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.piece import Piece

if TYPE_CHECKING:
    from reference.shape import ModelShape

VECTOR, MATRIX = ("channel",), ("head", "value", "key")
"""The axes of a token shift and of a WKV state, in the order of the targets' own arrays."""

_WORD = re.compile(r"[()]|[^\s()]+")
_PART = re.compile(r"(\d+)/(\d+)", re.ASCII)


class LayoutError(ValueError):
    """A layout that cannot be read, or has other axes than its state."""


@dataclass(frozen=True, slots=True)
class Part:
    """The place *index* on an axis of *count*, which other states share."""

    index: int
    count: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The axes of a tensor, outermost first; those in one group are one axis of the tensor.

    Axes of length 1 are left out: they may stand anywhere.
    """

    groups: tuple[tuple[str | Part, ...], ...]

    @property
    def stacked(self) -> bool:
        """Whether one tensor holds every layer."""
        return "layer" in self._axes

    @property
    def _axes(self) -> tuple[str | Part, ...]:
        return tuple(axis for group in self.groups for axis in group)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The places that it takes on axes that are shared."""
        return tuple(axis for axis in self._axes if isinstance(axis, Part))

    def shape(self, model: ModelShape) -> tuple[int, ...]:
        """The tensor's, without axes of length 1."""
        lengths = [math.prod(_length(axis, model) for axis in group) for group in self.groups]
        return tuple(length for length in lengths if length > 1)

    def piece(self, model: ModelShape, *, state: int, layer: int) -> Piece:
        """Where the state of *layer* lies in the tensor number *state*."""
        names = VECTOR if "channel" in self._axes else MATRIX
        index: list[int | None] = []
        left: list[str] = []
        for axis in self._axes:
            if isinstance(axis, Part):
                index.append(axis.index)
            elif axis == "layer":
                index.append(layer)
            else:
                index.append(None)
                left.append(axis)
        return Piece(
            state=state,
            axes=tuple(_length(axis, model) for axis in self._axes),
            index=tuple(index),
            order=tuple(left.index(name) for name in names),
            shape=tuple(_length(name, model) for name in names),
        )


def parse_layout(text: str, axes: tuple[str, ...]) -> Layout:
    """Read a layout of a state with *axes*.

    Raises:
        LayoutError: says what was expected and what was found.
    """
    groups: list[list[str | Part]] = []
    inside = False
    for word in _WORD.findall(text):
        if word in "()":
            if inside == (word == "("):
                raise LayoutError(f"expected brackets in pairs, one level deep, found {text!r}")
            inside = not inside
            if inside:
                groups.append([])
            continue
        if word == "1":
            continue
        axis = _axis(word, axes, text)
        if inside:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    if inside:
        raise LayoutError(f"expected brackets in pairs, one level deep, found {text!r}")
    found = [axis for group in groups for axis in group if isinstance(axis, str) and axis != "layer"]
    if sorted(found) != sorted(axes) or sum(axis == "layer" for group in groups for axis in group) > 1:
        raise LayoutError(
            f"expected each of {' '.join(axes)} once, in any order, and layer at most once, found {text!r}"
        )
    return Layout(tuple(tuple(group) for group in groups if group))


def _axis(word: str, axes: tuple[str, ...], text: str) -> str | Part:
    part = _PART.fullmatch(word)
    if part:
        index, count = int(part[1]), int(part[2])
        if index >= count:
            raise LayoutError(f"expected a place below {count} in {word}: they count from 0; found {text!r}")
        return Part(index, count)
    if word not in {*axes, "layer"}:
        raise LayoutError(
            f"expected axes among {', '.join(axes)}, layer, 1 and a place on a shared axis such as 0/2, found {word!r} "
            f"in {text!r}"
        )
    return word


def _length(axis: str | Part, model: ModelShape) -> int:
    if isinstance(axis, Part):
        return axis.count
    head = model.head_size
    return {
        "layer": model.n_layer,
        "channel": model.n_embd,
        "head": model.n_head,
        "value": head,
        "key": head,
    }[axis]
