"""Records as a comment of a pull request: the verdict, what failed, a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.case_table import ACCURACY, FIGURES, MEASURED, PREDICTED, case_rows
from reports.schema import Outcome
from reports.verdict import State, verdict_of, verdict_of_run
from reports.words import figure_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from reports.case_table import CaseRow
    from reports.lenient import Loaded
    from reports.schema import Record

MOST = 20
"""How many checks that failed, and how many cases, are shown."""

_SIGNS = {State.GOOD: "✅", State.BAD: "❌", State.DOUBTFUL: "⚠️"}
_SHOWN = ("kl_mean", "kl_worst", "top1", "predicted_ms", "measured_token_ms")
_MESSAGE = 200
_GROUPS = {ACCURACY: "", PREDICTED: "predicted", MEASURED: "measured"}


def write_markdown(loaded: Loaded, path: Path) -> None:
    """Write it; what is left out is counted."""
    path.write_text("\n".join(_lines(loaded)) + "\n", encoding="utf-8")


def _lines(loaded: Loaded) -> Iterator[str]:
    verdict, rows = verdict_of(loaded), case_rows(loaded)
    yield f"## {_SIGNS[verdict.state]} {verdict.headline}"
    yield ""
    yield f"{verdict.details}."
    yield ""
    yield "| run | verdict | target | toolchain | checkpoint | started |"
    yield "|---|---|---|---|---|---|"
    for run in loaded.runs:
        manifest = run.file.run
        words = [manifest.where, manifest.toolchain.get("version", "?"), str(manifest.checkpoint.get("name", "?"))]
        yield _line([_code(manifest.id), verdict_of_run(run).headline, *map(_code, words), _code(manifest.started)])
    if loaded.faults:
        yield ""
        yield "### Cannot be read"
        yield ""
        yield from _some([f"- {_code(fault)}" for fault in loaded.faults], "faults")
    yield from _checks("Failed", rows, Outcome.FAILED, loaded)
    yield from _checks("Without a verdict", rows, Outcome.INFRA, loaded)
    yield from _checks("Failed as expected", rows, Outcome.EXPECTED_FAILURE, loaded)
    yield from _table(rows, loaded)


def _checks(heading: str, rows: Sequence[CaseRow], outcome: Outcome, loaded: Loaded) -> Iterator[str]:
    found = [(row, record) for row in rows for record in row.records if record.outcome is outcome]
    if found:
        yield ""
        yield f"### {heading}"
        yield ""
        yield from _some([_check(row, record, loaded) for row, record in found], "checks")


def _check(row: CaseRow, record: Record, loaded: Loaded) -> str:
    stage = f" at {record.stage.value}" if record.stage else ""
    message = next(iter(record.message.splitlines()), "")
    if record.expected is not None:
        message = f"{record.expected.reason}; since {record.expected.since or 'unknown'}"
    return f"- {_name(row, loaded)} {_code(f'{record.suite}/{record.check}')}{stage}: {_code(message[:_MESSAGE])}"


def _table(rows: Sequence[CaseRow], loaded: Loaded) -> Iterator[str]:
    graphs = [row for row in rows if row.case]
    figures = [one for one in FIGURES if one.name in _SHOWN and any(one.name in row.figures for row in graphs)]
    if not graphs:
        return
    headings = [" ".join(filter(None, [_GROUPS[one.group], one.label, _units(one.unit)])) for one in figures]
    yield ""
    yield "### Cases"
    yield ""
    yield _line(["case", "checks", "failed", *headings])
    yield f"|---|{(len(figures) + 2) * '---:|'}"
    for row in graphs[:MOST]:
        numbers = [figure_words(row.figures.get(one.name), one.unit) for one in figures]
        failed = str(row.outcomes.get(Outcome.FAILED, 0))
        yield _line([_name(row, loaded), str(len(row.records)), failed, *numbers])
    if len(graphs) > MOST:
        yield ""
        yield f"… and {len(graphs) - MOST:,} more cases."
    yield ""
    yield "*Predicted* is the compiler's cycle profile, *measured* is a board. Neither is the simulator's wall time."


def _some(lines: list[str], what: str) -> Iterator[str]:
    yield from lines[:MOST]
    if len(lines) > MOST:
        yield f"- … and {len(lines) - MOST:,} more {what}"


def _name(row: CaseRow, loaded: Loaded) -> str:
    name = _code(row.case or "(no graph)")
    return f"{name} of {_code(loaded.runs[row.run].file.run.id)}" if len(loaded.runs) > 1 else name


def _code(text: str) -> str:
    """Text as it is: in a code span nothing is markup, and nobody is notified."""
    plain = " ".join(text.replace("`", "'").split())
    return f"`{plain}`" if plain else ""


def _units(unit: str) -> str:
    return f"({unit})" if unit and unit != "share" else ""


def _line(cells: Iterable[str]) -> str:
    """A line of a table, where even in a code span a bar would end the cell, sometimes behind a backslash too."""
    return f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |"
