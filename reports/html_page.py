"""Records as one HTML page that opens from disk without a network."""

from __future__ import annotations

import math
import sys
from array import array
from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import msgspec
from markupsafe import Markup

from reports.case_table import case_rows, reproduce, shown_figures
from reports.csv_file import figures
from reports.libraries import libraries
from reports.metric import unit_of
from reports.schema import Outcome
from reports.verdict import verdict_of, verdict_of_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reports.case_table import CaseRow
    from reports.lenient import Loaded, LoadedRun
    from reports.schema import Reading, Record

_HERE = Path(__file__).parent
_MESSAGES_CHARACTERS = 4_000_000
"""How many characters of messages a page holds, so that a run where everything fails still opens."""
_SHORTEST_MESSAGE, _LONGEST_MESSAGE = 200, 8000


def write_html(loaded: Loaded, path: Path, cache: Path | None = None) -> None:
    """Write the verdict, the grid, plots to choose by, a table to search, and where it all comes from.

    *cache* is a folder in which the plots' library is kept from one page to the next; putting it together takes two
    seconds.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((_HERE / "page.html.jinja").read_text(encoding="utf-8"))
    rows = case_rows(loaded)
    figures_shown = shown_figures(rows)
    page = template.render(
        loaded=loaded,
        verdict=verdict_of(loaded),
        verdicts=[verdict_of_run(run) for run in loaded.runs],
        environments=[_environment(run) for run in loaded.runs],
        figures=figures_shown,
        groups=Counter(figure.group for figure in figures_shown),  # of columns that stand side by side
        data=Markup(page_data(loaded, rows)),  # noqa: S704 - escaped there
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - ours
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),  # noqa: S704 - ours
        libraries=Markup(libraries(cache)),  # noqa: S704 - checked there
    )
    path.write_text(page, encoding="utf-8")


def page_data(loaded: Loaded, rows: Sequence[CaseRow]) -> str:
    """What the page's script works with, as JSON that can stand in a script element.

    Names, messages and lists of metrics and of positions are numbered, and floats have six digits: the CSV and the
    records have all of them.
    """
    texts, metrics, shapes, positions = _Numbers(), _Numbers(), _Numbers(), _Numbers()
    # A page where thousands of checks fail shows less of each message.
    failures = sum(bool(record.message) for row in rows for record in row.records)
    longest = min(max(_MESSAGES_CHARACTERS // max(failures, 1), _SHORTEST_MESSAGE), _LONGEST_MESSAGE)

    def checked(record: Record) -> list[Any]:
        found = list(figures(record))
        shape = shapes.of(tuple(metrics.of((name, kind.value, unit_of(name))) for name, kind, _ in found))
        message = record.message
        if len(message) > longest:
            message = f"{message[:longest]}\n… {len(message) - longest:,} more characters in records.jsonl"
        return [
            texts.of(f"{record.suite}/{record.check}"),
            record.outcome.value,
            record.stage.value if record.stage else "",
            texts.of(message),
            texts.of(record.bmodel_sha256),
            record.expected,
            shape,
            [_short(value) for _, _, value in found],
            # Most curves are over the same positions.
            positions.of(tuple(record.kl_by_position)),
            _of_plot(record.kl_by_position.values()),
        ]

    cases, shown = [], shown_figures(rows)
    for row in rows:
        parts, run = row.parts, loaded.runs[row.run].file.run
        command = texts.of(reproduce(run, row.case, row.records[0].check)) if not row.case else -1
        cases.append(
            [
                row.run,
                row.case,
                parts.graph,
                parts.chunk,
                parts.quantization,
                "+".join(filter(None, [parts.variant, parts.options])),
                row.outcome.value,
                [_short(row.figures.get(figure.name, False)) for figure in shown],
                [checked(record) for record in row.records],
                command,
            ]
        )
    data = {
        "runs": [_run(run) for run in loaded.runs],
        "cases": cases,
        "figures": shown,
        "texts": texts.values,
        "metrics": metrics.values,
        "shapes": shapes.values,
        "positions": positions.values,
        "outcomes": [outcome.value for outcome in Outcome],
    }
    return _in_script(msgspec.json.encode(data).decode())


def _run(run: LoadedRun) -> dict[str, Any]:
    manifest = run.file.run
    return {
        "id": manifest.id,
        "checkpoint": str(manifest.checkpoint.get("name", "?")),
        "toolchain": manifest.toolchain.get("version", "?"),
        "where": manifest.where,
        "started": manifest.started,
        "command": reproduce(manifest, "CASE"),
        "commit": manifest.harness.get("commit", ""),
    }


class _Numbers:
    """Values by number, each kept once."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def of(self, value: object) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def values(self) -> list[Any]:
        return list(self._numbers)


def _short(value: float | bool | None) -> Any:  # noqa: FBT001 - False stands for a figure that was not told
    """Six digits; text for what is not finite, as JSON has no number for it; null for what is not there."""
    if value is False:
        return None
    if value is None or not math.isfinite(value):
        return "not finite"
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _of_plot(kl_nats: Iterable[float | None]) -> str:
    """A curve as base64 of float32, little end first, NaN for what is not finite: the page reads that of an open case.

    As numbers, the curves of thousands of cases would be most of what a browser parses before it shows anything.
    """
    values = array("f", [math.nan if kl is None else kl for kl in kl_nats])
    if sys.byteorder == "big":
        values.byteswap()
    return b64encode(values.tobytes()).decode()


def _in_script(text: str) -> str:
    # Inside a script element only "<" could end it early.
    return text.replace("<", "\\u003c")


def _environment(run: LoadedRun) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings, and pairs of a name and a value."""
    manifest, end = run.file.run, run.file.end
    runtimes = {tuple(record.runtime.items()) for record in run.file.records if record.runtime}
    found: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "Run",
            [
                ("id", manifest.id),
                ("command", " ".join(manifest.command)),
                ("target", manifest.where),
                ("started", manifest.started),
                ("finished", end.finished if end else "never: the run was interrupted"),
                ("records", str(run.path)),
            ],
        )
    ]
    for heading, table in (
        ("Harness", manifest.harness),
        ("Toolchain", manifest.toolchain),
        ("Checkpoint", manifest.checkpoint),
        ("Grid", manifest.grid),
        ("Port", manifest.port),
        ("Limits", {"sha256": manifest.limits_sha256}),
        ("Options", manifest.options),
        ("Data", manifest.data),
        ("Machine", manifest.machine),
    ):
        found.append((heading, [(name, str(value)) for name, value in table.items()]))
    found += [("Runtime", [(name, value) for name, value in runtime]) for runtime in sorted(runtimes)]
    found.append(("Board before the first case", _readings(manifest.health)))
    found.append(("Board after the last case", _readings(end.health if end else ())))
    found.append(("Packages", list(manifest.packages.items())))
    return [(heading, pairs) for heading, pairs in found if pairs]


def _readings(readings: Sequence[Reading]) -> list[tuple[str, str]]:
    return [
        (
            reading.name,
            f"unavailable: {reading.why_unavailable}"
            if reading.value is None
            else f"{reading.value} {reading.unit}".strip(),
        )
        for reading in readings
    ]
