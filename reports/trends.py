"""What changed from run to run: lines of one target and one checkpoint, and in them the first run after each change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.history import worst_outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reports.history import CaseSummary, IndexedRun


@dataclass(frozen=True, slots=True)
class Trend:
    """A figure whose course is shown.

    Attributes:
        name: as in the records.
        title: with the unit.
        kind: ``predicted``, ``compiler`` (the tool's own figures) or ``measured``.
        noisy: whether it differs from run to run anyway, so that a difference is no change.
    """

    name: str
    title: str
    kind: str
    noisy: bool = False


TRENDS = (
    Trend("predicted_ms", "predicted, ms", "predicted"),
    Trend("compile_seconds", "compile, s", "compiler", noisy=True),
    Trend("bmodel_bytes", "bmodel, bytes", "compiler"),
    Trend("kl_mean_nats", "KL mean, nats", "measured"),
    Trend("kl_worst_nats", "KL worst, nats", "measured"),
    Trend("top1_share", "top-1, share", "measured"),
    Trend("lambada_accuracy", "LAMBADA, share", "measured"),
    Trend("lambada_perplexity", "LAMBADA, perplexity", "measured"),
    Trend("exact_matches", "exact matches", "measured"),
    Trend("ttft_ms", "first token, ms", "measured", noisy=True),
    Trend("tpot_ms", "next token, ms", "measured", noisy=True),
)

_SAME = 1e-6  # a share: the reference's sums differ in their last digits with the number of threads
_ORIGINS = (
    "harness.commit",
    "toolchain.",
    "grid.sha256",
    "port.",
    "limits_sha256",
    "options.",
    "data.",
    "health.",
    "machine.",
)


@dataclass(frozen=True, slots=True)
class Change:
    """Something that was one thing in a run and another in the next that has it."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A run in a line, and what is new in it.

    Attributes:
        origins: what was changed beforehand: entries of the manifest.
        cases: changes of each case that has some.
    """

    run: IndexedRun
    origins: tuple[Change, ...]
    cases: dict[str, tuple[Change, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Runs of one checkpoint on one target, in their order; interrupted ones are in it, and are compared with none."""

    target: str
    checkpoint: str
    steps: tuple[Step, ...]

    @property
    def cases(self) -> tuple[str, ...]:
        """The names of all cases that a complete run has."""
        return tuple(dict.fromkeys(name for step in self.steps if not step.run.interrupted for name in step.run.cases))


def lines_of(runs: Iterable[IndexedRun]) -> tuple[Line, ...]:
    """Sort runs into lines, and find what changed. *runs* are in order; so are the lines, by their latest run."""
    by_line: dict[tuple[str, str, str], list[IndexedRun]] = {}
    for run in runs:
        key = run.target, run.origin.get("checkpoint.name", "?"), run.origin.get("checkpoint.sha256", "")
        before = by_line.pop(key, [])
        by_line[key] = [*before, run]
    return tuple(
        Line(target=target, checkpoint=f"{name} {sha256[:8]}".strip(), steps=_steps(found))
        for (target, name, sha256), found in reversed(by_line.items())
    )


def values(line: Line, case: str, figure: str) -> list[float | None]:
    """A figure of a case in each run; None where the run is interrupted, or has none that is finite."""
    found: list[float | None] = []
    for step in line.steps:
        summary = None if step.run.interrupted else step.run.cases.get(case)
        found.append(summary.figures.get(figure) if summary else None)
    return found


def _steps(runs: Sequence[IndexedRun]) -> tuple[Step, ...]:
    steps = []
    last: IndexedRun | None = None
    latest: dict[str, CaseSummary] = {}
    for run in runs:
        origins: tuple[Change, ...] = ()
        cases: dict[str, tuple[Change, ...]] = {}
        if not run.interrupted:
            if last is not None:
                origins = _origins(last.origin, run.origin)
                cases = {name: found for name in run.cases if (found := _changes(latest.get(name), run.cases[name]))}
                gone = [name for name in last.cases if name not in run.cases]
                cases |= {name: (Change("case", "there", "gone"),) for name in gone}
            last = run
            latest |= run.cases
        steps.append(Step(run=run, origins=origins, cases=cases))
    return tuple(steps)


def _origins(before: dict[str, str], after: dict[str, str]) -> tuple[Change, ...]:
    names = [name for name in dict.fromkeys([*before, *after]) if name.startswith(_ORIGINS)]
    return tuple(
        Change(name, before.get(name, "absent"), after.get(name, "absent"))
        for name in names
        if before.get(name) != after.get(name)
    )


def _changes(before: CaseSummary | None, after: CaseSummary) -> tuple[Change, ...]:
    if before is None:
        return (Change("case", "absent", "new"),)
    found = []
    was, now = worst_outcome(before.outcomes), worst_outcome(after.outcomes)
    if was != now:
        found.append(Change("outcome", was, now))
    if before.bmodel_sha256 != after.bmodel_sha256:
        found.append(Change("bmodel", before.bmodel_sha256[:8] or "none", after.bmodel_sha256[:8] or "none"))
    for trend in TRENDS:
        name = trend.name
        there = name in before.figures and name in after.figures
        if there and not trend.noisy and not _same(before.figures[name], after.figures[name]):
            found.append(Change(name, words(before.figures[name]), words(after.figures[name])))
    return tuple(found)


def words(value: float | None) -> str:
    """A figure as it is shown."""
    if value is None:
        return "not finite"
    return f"{int(value):,}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=_SAME, abs_tol=0)
