"""A row per run and case: the worst over its checks, and the figures to choose a model by."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from reports.case_id import CaseParts, case_parts
from reports.verdict import SEVERITY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from reports.lenient import Loaded
    from reports.schema import Outcome, Record, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A column of the table.

    Attributes:
        group: what kind of figure it is, so that what is predicted never stands unmarked beside what was measured.
        better: whether ``lower`` or ``higher`` is.
        always: whether it has a column even where no case has the figure.
    """

    name: str
    label: str
    group: str
    unit: str
    better: str = "lower"
    always: bool = True


ACCURACY, PREDICTED, MEASURED = "accuracy", "predicted", "measured"
FIGURES = (
    Figure(name="kl_mean", label="KL mean", group=ACCURACY, unit="nats"),
    Figure(name="kl_worst", label="KL worst", group=ACCURACY, unit="nats"),
    Figure(name="total_kl", label="KL in all", group=ACCURACY, unit="nats"),
    Figure(name="top1", label="top-1", group=ACCURACY, unit="share", better="higher"),
    Figure(name="state_nmse", label="state NMSE", group=ACCURACY, unit=""),
    Figure(name="lambada_perplexity", label="LAMBADA perplexity", group=ACCURACY, unit="", always=False),
    Figure(
        name="lambada_accuracy", label="LAMBADA accuracy", group=ACCURACY, unit="share", better="higher", always=False
    ),
    Figure(name="predicted_ms", label="call", group=PREDICTED, unit="ms"),
    Figure(name="predicted_token_ms", label="token", group=PREDICTED, unit="ms"),
    Figure(name="ddr_mb", label="DDR", group=PREDICTED, unit="MB"),
    Figure(name="measured_token_ms", label="token", group=MEASURED, unit="ms", always=False),
    Figure(name="ttft_ms", label="first token", group=MEASURED, unit="ms", always=False),
    Figure(name="device_memory_mb", label="memory", group=MEASURED, unit="MB", always=False),
)

_DECODE_AT = re.compile(r"decode_ms_at_(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRow:
    """A case of a run.

    Attributes:
        run: its place among the runs of the report, from 0 on.
        case: the id; empty for the checks that concern no graph.
        outcome: the worst of its checks.
        figures: by the names of FIGURES; NaN where one was not finite, absent where it was not told.
    """

    run: int
    case: str
    parts: CaseParts
    records: tuple[Record, ...]
    outcome: Outcome
    outcomes: Mapping[Outcome, int]
    figures: Mapping[str, float]


def case_rows(loaded: Loaded) -> list[CaseRow]:
    """The cases of every run, in the order in which they ran; behind them the checks without a graph."""
    rows = []
    for number, run in enumerate(loaded.runs):
        by_case: dict[str, list[Record]] = defaultdict(list)
        for record in run.file.records:
            by_case[record.case].append(record)
        without_graph = by_case.pop("", None)
        rows += [_row(number, case, records) for case, records in by_case.items()]
        rows += [_row(number, "", without_graph)] if without_graph else []
    return rows


def shown_figures(rows: Sequence[CaseRow]) -> list[Figure]:
    """The columns that a table of these cases has."""
    return [figure for figure in FIGURES if figure.always or any(figure.name in row.figures for row in rows)]


def _row(run: int, case: str, records: Sequence[Record]) -> CaseRow:
    parts = case_parts(case)
    outcomes = Counter(record.outcome for record in records)
    return CaseRow(
        run=run,
        case=case,
        parts=parts,
        records=tuple(records),
        outcome=next(outcome for outcome in SEVERITY if outcomes[outcome]),
        outcomes=outcomes,
        figures=_figures(parts, records),
    )


def _figures(parts: CaseParts, records: Sequence[Record]) -> dict[str, float]:
    predicted: Mapping[str, float] = next((record.predicted for record in records if record.predicted), {})
    call_ms = predicted.get("predicted_ms")
    total_kl = _worst(records, "total_kl_mean_nats", max)
    found = {
        "kl_mean": _worst(records, "kl_mean_nats", max),
        "kl_worst": _worst(records, "kl_worst_nats", max),
        "total_kl": total_kl if total_kl is not None else _worst(records, "kl_mean_nats", max),
        "top1": _worst(records, "top1_share", min),
        "state_nmse": _worst(records, "state_nmse", max),
        "lambada_perplexity": _worst(records, "lambada_perplexity", max),
        "lambada_accuracy": _worst(records, "lambada_accuracy", min),
        "predicted_ms": call_ms,
        "predicted_token_ms": predicted["predicted_ms"] / parts.chunk
        if "predicted_ms" in predicted and parts.chunk
        else None,
        "ddr_mb": _megabytes(predicted.get("ddr_read_bytes"), predicted.get("ddr_write_bytes")),
        "measured_token_ms": _measured_token_ms(parts, records),
        "ttft_ms": _worst(records, "ttft_ms", max),
        "device_memory_mb": _megabytes(_worst(records, "device_memory_bytes", max)),
    }
    return {name: value for name, value in found.items() if value is not None}


def _measured_token_ms(parts: CaseParts, records: Sequence[Record]) -> float | None:
    """On a board alone: the simulator's times have other names."""
    if (prefill := _worst(records, "prefill_ms", max)) is not None and parts.chunk:
        return prefill / parts.chunk
    depths = {depth for record in records for name in record.metrics if (depth := _decode_depth(name)) is not None}
    return _worst(records, f"decode_ms_at_{min(depths)}", max) if depths else None


@lru_cache(10_000)
def _decode_depth(name: str) -> int | None:
    found = _DECODE_AT.fullmatch(name)
    return int(found[1]) if found else None


def _worst(records: Iterable[Record], name: str, worse: Callable[[Iterable[float]], float]) -> float | None:
    values = [record.metrics[name] for record in records if name in record.metrics]
    if not values:
        return None
    return math.nan if None in values else worse(value for value in values if value is not None)


def _megabytes(*of_bytes: float | None) -> float | None:
    known = [value for value in of_bytes if value is not None]
    return sum(known) / 1e6 if len(known) == len(of_bytes) else None


def reproduce(run: Run, case: str, check: str = "") -> str:
    """The command line that judges one case again, as the run was started but for the choice of tests.

    Args:
        run: where the case was judged.
        case: its id; empty for a check without a graph.
        check: of it alone; needed where there is no case.
    """
    words = list(run.command) or ["pytest", "suites/"]
    words[0] = "pytest" if words[0].endswith(("pytest", "py.test", "pytest/__main__.py")) else words[0]
    words = [word for word in _without_choice(words) if not word.startswith("-k")]
    # In brackets, an id is not a part of a longer one. What is no test's name, such as a canary, comes with any choice.
    choice = f"[{case}]" if case else check.partition(" (")[0]
    return shlex.join([*words, "-k", choice] if " " not in choice else words)


def _without_choice(words: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if not skip and word != "-k":
            kept.append(word)
        skip = word == "-k" and not skip
    return kept
