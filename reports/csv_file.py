"""Records as one tidy CSV: a row per case, check and metric, nothing rounded."""

from __future__ import annotations

import csv
import io
from functools import lru_cache
from typing import TYPE_CHECKING

from reports.case_id import case_parts
from reports.metric import Kind, measured_kind, unit_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from reports.lenient import Loaded, LoadedRun
    from reports.schema import Record

_END = "\r\n"
COLUMNS = (
    "run",
    "run_state",
    "started",
    "target",
    "toolchain",
    "checkpoint",
    "case",
    "graph",
    "chunk",
    "quantization",
    "variant",
    "options",
    "suite",
    "check",
    "outcome",
    "stage",
    "metric",
    "kind",
    "value",
    "unit",
    "message",
)
"""``message`` is the first line; ``value`` is ``nan`` where a figure was NaN or infinite."""


def write_csv(loaded: Loaded, path: Path) -> None:
    """Write every figure of every record; each record has at least the row of its ``check_seconds``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"{_cells(COLUMNS)}{_END}")
        for run in loaded.runs:
            of_run = _of_run(run)
            for record in run.file.records:
                file.writelines(_rows(of_run, record))


def _of_run(run: LoadedRun) -> str:
    manifest = run.file.run
    toolchain, checkpoint = manifest.toolchain.get("version", ""), manifest.checkpoint.get("name", "")
    return _cells((manifest.id, run.state, manifest.started, manifest.target, toolchain, checkpoint))


def _rows(of_run: str, record: Record) -> Iterator[str]:
    """Lines with their ends: what a record's rows have in common is written as CSV once, for it is most of each."""
    parts, stage = case_parts(record.case), record.stage.value if record.stage else ""
    of_case = (record.case, parts.graph, parts.chunk, parts.quantization, parts.variant, parts.options)
    before = f"{of_run},{_cells((*of_case, record.suite, record.check, record.outcome.value, stage))}"
    message = _cells((next(iter(record.message.splitlines()), ""), ""))[:-1]
    for name, kind, value in figures(record):
        number = "nan" if value is None else repr(value)
        yield f"{before},{_name(name, kind)},{number},{unit_of(name)},{message}{_END}"


@lru_cache(10_000)
def _name(name: str, kind: Kind) -> str:
    return _cells((name, kind.value))


def _cells(values: Iterable[object]) -> str:
    """Two and more values as CSV, without the line's end, which makes every kind of line break in a text be quoted."""
    made = io.StringIO()
    csv.writer(made, lineterminator=_END).writerow(values)
    return made.getvalue().removesuffix(_END)


def figures(record: Record) -> Iterator[tuple[str, Kind, float | None]]:
    """Each figure of a record with its kind; None where it was NaN or infinite."""
    for name, value in record.metrics.items():
        yield name, measured_kind(name), value
    for name, value in record.predicted.items():
        yield name, Kind.PREDICTED, value
    for name, value in record.compiled.items():
        yield name, Kind.COMPILED, value
    yield "check_seconds", Kind.HOST_WALL, record.seconds
