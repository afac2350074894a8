"""Records as one tidy CSV: a row per case, check and metric, nothing rounded."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from reports.case_id import case_parts
from reports.metric import Kind, measured_kind, unit_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reports.lenient import Loaded, LoadedRun
    from reports.schema import Record

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
        writer = csv.writer(file)  # its line ends make it quote every kind of line break inside a text
        writer.writerow(COLUMNS)
        for run in loaded.runs:
            for record in run.file.records:
                writer.writerows(_rows(run, record))


def _rows(run: LoadedRun, record: Record) -> Iterator[tuple[object, ...]]:
    manifest, parts = run.file.run, case_parts(record.case)
    before = (
        manifest.id,
        run.state,
        manifest.started,
        manifest.target,
        manifest.toolchain.get("version", ""),
        manifest.checkpoint.get("name", ""),
        record.case,
        parts.graph,
        parts.chunk,
        parts.quantization,
        parts.variant,
        parts.options,
        record.suite,
        record.check,
        record.outcome.value,
        record.stage.value if record.stage else "",
    )
    message = next(iter(record.message.splitlines()), "")
    for name, kind, value in figures(record):
        yield *before, name, kind.value, "nan" if value is None else repr(value), unit_of(name), message


def figures(record: Record) -> Iterator[tuple[str, Kind, float | None]]:
    """Each figure of a record with its kind; None where it was NaN or infinite."""
    for name, value in record.metrics.items():
        yield name, measured_kind(name), value
    for name, value in record.predicted.items():
        yield name, Kind.PREDICTED, value
    for name, value in record.compiled.items():
        yield name, Kind.COMPILED, value
    yield "check_seconds", Kind.HOST_WALL, record.seconds
