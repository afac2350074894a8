"""Predicted timelines as one HTML page that opens from disk without a network, and as a trace for other viewers.

It knows nothing of compilers: bars with names, times in cycles of a nanosecond, and sums of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

if TYPE_CHECKING:
    from collections.abc import Sequence

_TEMPLATE = Path(__file__).with_name("timeline.html.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One instruction.

    Attributes:
        lane: the engine, one of the view's lanes.
        start: predicted cycle.
        cycles: predicted length.
        operation: what kind of operation it works for; decides its colour.
        name: what it makes or moves.
        group: the name without the layer's number, as in a row of the table.
        detail: the hardware's command, for instance, and the direction of a transfer.
        layer: the model's layer, where it belongs to one.
        bytes: moved.
    """

    lane: str
    start: int
    cycles: int
    operation: str
    name: str
    group: str
    detail: str
    layer: int | None
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A sum over bars that are the same."""

    operation: str
    group: str
    count: int
    tiu_cycles: int
    gdma_cycles: int
    alone_cycles: int
    bytes: int

    @property
    def cycles(self) -> int:
        """Of both engines."""
        return self.tiu_cycles + self.gdma_cycles


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineView:
    """One profile as it is shown.

    Attributes:
        title: which graph of which model, by which compiler.
        facts: pairs of words and figures, in the order in which they are shown.
        floor_ns: where the floor is drawn; None where it is not known.
        lanes: the engines from top to bottom; the first shows where the model's layers begin and end.
        bars: in the order of their start.
        by_name: sums over the model's layers.
        by_kind: sums over everything of one kind of operation.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    total_cycles: int
    floor_ns: float | None
    lanes: tuple[str, ...]
    bars: tuple[Bar, ...]
    by_name: tuple[Row, ...]
    by_kind: tuple[Row, ...]


def write_timeline_page(views: Sequence[TimelineView], path: Path) -> None:
    """Write one profile, or several under each other on the same axis of time, their tables side by side.

    Raises:
        ValueError: no view.
    """
    if not views:
        raise ValueError("no timeline to show, but should have at least one")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text())
    tables = [
        ("By operation, summed over the layers", _compared([view.by_name for view in views])),
        ("By kind", _compared([view.by_kind for view in views])),
    ]
    facts = [(word, [dict(view.facts).get(word, "") for view in views]) for word in _words(views)]
    # Inside a script element only "<" could end it early.
    data = json.dumps([_data(view) for view in views], separators=(",", ":")).replace("<", "\\u003c")
    path.write_text(template.render(views=views, tables=tables, facts=facts, data=data))


def write_trace(views: Sequence[TimelineView], path: Path) -> None:
    """Write the same bars in the trace-event format, which Perfetto and Chrome's tracing page open; times in µs."""
    events: list[dict[str, Any]] = []
    for pid, view in enumerate(views, 1):
        lanes = {lane: tid for tid, lane in enumerate(view.lanes)}
        events.append({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": f"predicted: {view.title}"}})
        events += [
            {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": lane}}
            for lane, tid in lanes.items()
        ]
        events += [
            {
                "ph": "X",
                "pid": pid,
                "tid": lanes[bar.lane],
                "ts": bar.start / 1e3,
                "dur": bar.cycles / 1e3,
                "name": f"{bar.operation} {bar.name}".strip(),
                "cat": bar.operation,
                "args": {"detail": bar.detail, "cycles": bar.cycles, "bytes": bar.bytes},
            }
            for bar in view.bars
        ]
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}))


def _words(views: Sequence[TimelineView]) -> list[str]:
    return list(dict.fromkeys(word for view in views for word, _ in view.facts))


def _data(view: TimelineView) -> dict[str, Any]:
    """The bars as rows of numbers; texts are kept once and numbered."""
    texts: dict[str, int] = {}

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    bars = [
        [
            number(bar.lane),
            bar.start,
            bar.cycles,
            number(bar.operation),
            number(bar.name),
            number(bar.group),
            number(bar.detail),
            -1 if bar.layer is None else bar.layer,
            bar.bytes,
        ]
        for bar in view.bars
    ]
    return {
        "title": view.title,
        "total": view.total_cycles,
        "floor": view.floor_ns,
        "lanes": [number(lane) for lane in view.lanes],
        "texts": list(texts),
        "bars": bars,
    }


def _compared(tables: Sequence[Sequence[Row]]) -> list[tuple[tuple[str, str], list[Row | None]]]:
    """The rows of several profiles beside each other, the dearest in any of them first."""
    keyed = [{(row.operation, row.group): row for row in table} for table in tables]
    keys = {key: max(table[key].cycles for table in keyed if key in table) for table in keyed for key in table}
    order = sorted(keys, key=lambda key: (-keys[key], key))
    return [(key, [table.get(key) for table in keyed]) for key in order]
