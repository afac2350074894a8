"""The rows of ``rwkv-tpu bench-compile``: what is compiled, what it should reach, and the best that it ever reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from harness.cases import CaseError, parse_case
from harness.sizes import BY_BLOCK, SIZES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from harness.cases import Case

ROWS = Path(__file__).with_name("compile_rows.toml")

_HEADING = """\
# What `rwkv-tpu bench-compile` compiles (docs/performance.md): synthetic weights of a published size, embedding and
# head included, or one layer of it alone. Every time is predicted by the compiler's cycle profile, none is measured.
#
# target_ms     to reach, with TPU-MLIR 1.30.2
# loop_ms       the plain loop over tokens, first_ms the first chunk-parallel graph, prototype_ms the best throw-away
#               prototype before this benchmark: predictions of 1.30.2 as well, recorded then and not made again
# best          cycles by release, the fewest so far: `--record` writes them; to accept a worse one, remove it first
"""
_EARLIER = ("loop_ms", "first_ms", "prototype_ms")


class RowsError(ValueError):
    """The file of rows cannot be read or makes no sense; names it, the row and what was expected."""


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One graph with its target.

    Attributes:
        case: id of a case.
        size: of synthetic weights, by the name of the release.
        block: the layer that is compiled alone; None for the whole model.
        best: fewest predicted cycles so far, by release.
    """

    case: str
    size: str
    block: int | None = None
    target_ms: float
    loop_ms: float | None = None
    first_ms: float | None = None
    prototype_ms: float | None = None
    best: dict[str, int] = {}

    @property
    def id(self) -> str:
        """``0.1B decode-F16-chunk``, ``2.9B block 16 decode-F16-chunk``."""
        return f"{self.size} {self.case}" if self.block is None else f"{self.size} block {self.block} {self.case}"

    @property
    def point(self) -> Case:
        """The case."""
        return parse_case(self.case)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rows: tuple[Row, ...]


def read_rows(path: Path = ROWS) -> tuple[Row, ...]:
    """The rows of a file, in its order.

    Raises:
        RowsError: it is missing, is not one of rows, or a row makes no sense.
    """
    try:
        rows = msgspec.toml.decode(path.read_bytes(), type=_File).rows
    except (OSError, msgspec.DecodeError) as error:
        raise RowsError(f"{path}: {error}") from error
    for row in rows:
        if reason := _wrong(row):
            raise RowsError(f"{path}: row {row.id!r}: {reason}")
    ids = [row.id for row in rows]
    if twice := [one for one in ids if ids.count(one) > 1]:
        raise RowsError(f"{path}: row {twice[0]!r} stands there twice")
    return rows


def record(rows: Iterable[Row], cycles: Mapping[str, int], release: str) -> tuple[Row, ...]:
    """The rows with what one release reached put in where it is fewer than the best, or the first.

    Args:
        rows: all rows.
        cycles: what was reached, by a row's id.
        release: of the compiler.
    """

    def better(row: Row) -> Row:
        found = cycles[row.id]
        return msgspec.structs.replace(row, best=row.best | {release: min(found, row.best.get(release, found))})

    return tuple(better(row) if row.id in cycles else row for row in rows)


def write_rows(rows: Iterable[Row], path: Path = ROWS) -> None:
    """Write the file, whole or not at all."""
    whole = path.with_suffix(".new")
    whole.write_text(_HEADING + "".join(map(_table, rows)))
    whole.replace(path)


def _wrong(row: Row) -> str:
    """What about a row makes no sense; empty where all does."""
    try:
        case = row.point
    except CaseError as error:
        return str(error)
    if row.block is None:
        if row.size not in SIZES:
            return f"size {row.size!r} is none of {', '.join(SIZES)}; those of {', '.join(BY_BLOCK)} need a block"
    elif (shape := (SIZES | BY_BLOCK).get(row.size)) is None:
        return f"size {row.size!r} is none of {', '.join(SIZES | BY_BLOCK)}"
    elif not 0 < row.block < shape.n_layer:
        return f"block {row.block}, but should be one of 1 to {shape.n_layer - 1}: block 0 differs from the others"
    elif case.variant != "chunk":
        return f"variant {case.variant!r}, but blocks alone there are of chunk"
    times = {name: getattr(row, name) for name in ("target_ms", *_EARLIER)} | row.best
    wrong = [f"{name} is {time}, but should be positive" for name, time in times.items() if _not_positive(time)]
    return wrong[0] if wrong else ""


def _not_positive(time: float | None) -> bool:
    return time is not None and not 0 < time < float("inf")


def _table(row: Row) -> str:
    fields: dict[str, object] = {"case": row.case, "size": row.size}
    fields |= {name: getattr(row, name) for name in ("block", "target_ms", *_EARLIER)}
    lines = [f"{name} = {_value(value)}\n" for name, value in fields.items() if value is not None]
    best = ", ".join(f'"{release}" = {row.best[release]}' for release in sorted(row.best))
    return "\n[[rows]]\n" + "".join(lines) + (f"best = {{ {best} }}\n" if best else "")


def _value(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
