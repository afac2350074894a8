"""A point of the grid of operations: a block, an idiom, a shape and a precision."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from compile.spec import Quantization  # noqa: TC001 - msgspec reads the annotations
from harness.ops.block import Shape
from harness.ops.catalogue import BLOCKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from harness.ops.block import Block

GRID = Path(__file__).parent.parent.parent / "suites" / "ops.toml"


class OpGridError(ValueError):
    """The grid of operations makes no sense: names the file, what was expected and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCase:
    """One operation to compile and judge."""

    block: str
    idiom: str
    shape: Shape
    precision: Quantization

    @property
    def id(self) -> str:
        """The pytest id and the key in every record, such as ``group_norm-instance_norm-16x4x64-F16``."""
        return f"{self.block}-{self.idiom}-{self.shape}-{self.precision.value}"

    @property
    def of_block(self) -> Block:
        """The block."""
        return BLOCKS[self.block]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every idiom that a pattern ``BLOCK-IDIOM`` takes, in each shape and precision."""

    idioms: tuple[str, ...]
    shapes: tuple[str, ...]
    precisions: tuple[Quantization, ...]


def op_of(item: pytest.Item) -> OpCase | None:
    """The operation that a test was given; None where it concerns none."""
    callspec = getattr(item, "callspec", None)
    found = None if callspec is None else callspec.params.get("op")
    return found if isinstance(found, OpCase) else None  # pytest has a mark of its own where there is none at all


def load_ops(grid: str, path: Path = GRID) -> tuple[OpCase, ...]:
    """Read the operations of a grid, by its name; a grid that is not named there has those of ``default``.

    Precisions with codes apply to blocks that have matrices, and shapes to blocks that make sense in them.

    Raises:
        OpGridError: the file makes no sense, or a pattern takes nothing.
    """
    try:
        grids = msgspec.toml.decode(path.read_bytes(), type=dict[str, tuple[_Part, ...]])
        parts = grids.get(grid, grids.get("default", ()))
        return tuple(dict.fromkeys(case for part in parts for case in _cases(part)))
    except (OSError, msgspec.DecodeError, ValueError) as error:
        raise OpGridError(f"{path}: {error}") from error


def shipped_ops(path: Path = GRID) -> tuple[OpCase, ...]:
    """Every case of all grids, each once."""
    names = msgspec.toml.decode(path.read_bytes(), type=dict[str, tuple[_Part, ...]])
    return tuple(dict.fromkeys(case for name in names for case in load_ops(name, path)))


def parse_shape(text: str) -> Shape:
    """Read a shape as ids have it.

    Raises:
        ValueError: it is none.
    """
    numbers = text.split("x")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ValueError(f"shape {text!r}, but should be tokens x heads x channels of a head, such as 16x4x64")
    return Shape(*map(int, numbers))


def _cases(part: _Part) -> Iterator[OpCase]:
    known = [(block, idiom) for block in BLOCKS.values() for idiom in block.idioms]
    for pattern in part.idioms:
        found = [(block, idiom) for block, idiom in known if fnmatchcase(f"{block.name}-{idiom}", pattern)]
        if not found:
            raise ValueError(f"no idiom is called {pattern!r}; expected BLOCK-IDIOM or a pattern of it")
        for block, idiom in found:
            for shape in map(parse_shape, part.shapes):
                for precision in part.precisions:
                    if block.tokens <= shape.T and (not precision.weight_bits or block.matrices):
                        yield OpCase(block=block.name, idiom=idiom, shape=shape, precision=precision)
