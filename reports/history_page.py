"""The history as one HTML page that opens from disk without a network: what changed and when, and each case's course.

The curves are drawn here, as a line of SVG each: a plotting library makes ten kilobytes of what needs a tenth of one,
and a page has hundreds of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from reports.history import worst_outcome
from reports.trends import TRENDS, lines_of, values, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reports.history import CaseSummary, IndexedRun
    from reports.trends import Line, Trend

MOST = 120
"""How many runs of a line are shown, the latest; the database keeps all."""

_TEMPLATE = Path(__file__).with_name("history.html.jinja")
_WIDTH, _HEIGHT, _MARGIN = 132.0, 26.0, 3.0
_PAGES = ("index.html", "records.jsonl")


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a curve at which something changed."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Curve:
    """The course of a figure, as SVG wants it.

    Attributes:
        strokes: points of each unbroken piece.
        dots: where the value changed, and the last.
        last: in words.
        title: from where to where.
    """

    strokes: tuple[str, ...]
    dots: tuple[Dot, ...]
    last: str
    title: str


def write_history(
    runs: Sequence[IndexedRun], path: Path, notes: Mapping[str, str] | None = None, latest: str = ""
) -> None:
    """Write the page of *runs*, which are in order.

    *notes* is something to say of a run, by its id, and *latest* what is said first.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    # Changes are found over all runs, and the latest shown.
    sections = [_section(line, path.resolve().parent) for line in lines_of(runs)]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        page = template.render(sections=sections, notes=notes or {}, count=len(runs), latest=latest)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)  # a reader never sees half a page
    finally:
        temporary.unlink(missing_ok=True)


def _section(line: Line, home: Path) -> dict[str, object]:
    steps = line.steps[-MOST:]
    columns = [trend for trend in TRENDS if any(_has(line, case, trend.name) for case in line.cases)]
    return {
        "line": line,
        "left_out": len(line.steps) - len(steps),
        "columns": columns,
        "steps": [
            {
                "step": step,
                "link": _link(step.run, home),
                "outcomes": _outcomes(step.run),
                "number": number,
            }
            for number, step in enumerate(steps, 1)
        ],
        "cases": [
            {
                "name": case or "(no graph)",
                "outcome": _latest_outcome(line, case),
                "curves": [_curve(line, case, trend) for trend in columns],
            }
            for case in line.cases
        ],
    }


def _has(line: Line, case: str, figure: str) -> bool:
    return any(value is not None for value in values(line, case, figure)[-MOST:])


def _link(run: IndexedRun, home: Path) -> str:
    """Where the run is to be seen, from the page; empty where it is gone."""
    page = next((run.folder / name for name in _PAGES if (run.folder / name).is_file()), None)
    return "" if page is None else Path(os.path.relpath(page, home)).as_posix()


def _outcomes(run: IndexedRun) -> dict[str, int]:
    found: dict[str, int] = {}
    for case in run.cases.values():
        for outcome, count in case.outcomes.items():
            found[outcome] = found.get(outcome, 0) + count
    return found


def _latest_outcome(line: Line, case: str) -> str:
    summary = _latest(line, case)
    return "gone" if summary is None else worst_outcome(summary.outcomes)


def _latest(line: Line, case: str) -> CaseSummary | None:
    """What the latest complete run says of a case; None where it does not have it."""
    complete = [step.run for step in line.steps if not step.run.interrupted]
    return complete[-1].cases.get(case)


def _curve(line: Line, case: str, trend: Trend) -> Curve | None:
    """Draw a figure over the latest runs; None where there is nothing to draw."""
    found = values(line, case, trend.name)[-MOST:]
    steps = line.steps[-MOST:]
    finite = [value for value in found if value is not None]
    latest = _latest(line, case)
    is_bad = latest is not None and trend.name in latest.figures and latest.figures[trend.name] is None
    if not finite:
        return Curve(strokes=(), dots=(), last=words(None), title=trend.title) if is_bad else None
    low, high = min(finite), max(finite)

    def place(index: int, value: float) -> tuple[float, float]:
        across = index / max(1, len(found) - 1)
        up = (value - low) / (high - low) if high > low else 0.5
        return (
            round(_MARGIN + across * (_WIDTH - 2 * _MARGIN), 1),
            round(_HEIGHT - _MARGIN - up * (_HEIGHT - 2 * _MARGIN), 1),
        )

    strokes: list[list[str]] = [[]]
    dots = []
    for index, (value, step) in enumerate(zip(found, steps, strict=True)):
        if value is None:
            if not step.run.interrupted:
                strokes.append([])  # a gap; an interrupted run is passed over
            continue
        x, y = place(index, value)
        strokes[-1].append(f"{x:g},{y:g}")
        changes = [one for one in step.cases.get(case, ()) if one.what == trend.name]
        dots += [Dot(x, y, f"{step.run.started}: {one.before} → {one.after}") for one in changes]
    return Curve(
        strokes=tuple(" ".join(points) for points in strokes if points),
        dots=tuple(dots),
        last=words(None if is_bad else finite[-1]),
        title=f"{trend.title}: {words(low)} to {words(high)} over {len(finite)} runs",
    )
