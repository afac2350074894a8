"""Tests in which chance has a part: collected over the whole gate, then judged together."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from harness.gate import words
from harness.gate.family import levels
from harness.gate.finding import Finding, Key, Kind
from harness.gate.noisy import Change, can_tell, change, launches_needed
from harness.gate.rules import Better

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gate.rules import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class ChanceTest:
    """One metric of one check.

    Attributes:
        p_worse: one-sided, that it looks so much worse by chance.
        p_better: the same for better.
        beyond_worse: whether the change for the worse is larger than the rule's floor, and than the noise.
        beyond_better: the same for better.
        launches: what they show; None of a test of documents.
    """

    key: Key
    metric: str
    base: str
    new: str
    limit: str
    note: str
    p_worse: float
    p_better: float
    beyond_worse: bool
    beyond_better: bool
    launches: Change | None = None


class Launches(NamedTuple):
    """A noisy metric of one check: a value for each launch of either side, above zero and finite."""

    key: Key
    metric: str
    rule: Rule
    base: Sequence[float]
    new: Sequence[float]


def judge(launches: Sequence[Launches], documents: Sequence[ChanceTest], rate: float) -> list[Finding]:
    """Judge all tests of a gate; *rate* is how often one of them may fail where nothing changed."""
    count = len(launches) + len(documents)
    first = rate / max(1, count)  # the strictest level: that of the clearest test
    few = [one for one in launches if not can_tell(len(one.base), len(one.new), first)]
    enough = [one for one in launches if can_tell(len(one.base), len(one.new), first)]
    findings = [_too_few(one, count, first) for one in few if one.rule.repeats_needed]
    # Those that can tell nothing have a p of 1 in effect: they count, and come last.
    silent = [1.0] * len(few)
    tests = [*map(compare_launches, enough), *documents]
    worse = levels([test.p_worse for test in tests] + silent, rate)
    better = levels([test.p_better for test in tests] + silent, rate)
    for test, level, level_better in zip(tests, worse, better, strict=False):
        if test.p_worse <= level:
            kind = Kind.REGRESSION if test.beyond_worse else Kind.SHOWN
            findings.append(_finding(kind, test, _evidence(test, level, test.p_worse, within=not test.beyond_worse)))
        elif test.p_better <= level_better and test.beyond_better:
            findings.append(_finding(Kind.IMPROVED, test, _evidence(test, level_better, test.p_better, within=False)))
    return findings


def compare_launches(measured: Launches) -> ChanceTest:
    """Make the test of a noisy metric."""
    key, metric, rule, base, new = measured
    floor = rule.ratio or 1.0
    from_base, to_new = words.two_numbers(median(base), median(new))
    higher = rule.better is Better.HIGHER
    # Times as bad: the reciprocal of a rate is a time.
    seen = change([1 / x for x in base], [1 / x for x in new]) if higher else change(base, new)
    needed = max(floor, seen.noise)
    return ChanceTest(
        key=key,
        metric=metric,
        base=from_base,
        new=to_new,
        limit=f"x{needed:.4g}, the {'floor' if floor >= seen.noise else 'A/A noise'}",
        note=f"x{seen.ratio:.4g} {'as bad ' if higher else ''}over {len(base)} and {len(new)} launches",
        p_worse=seen.p_worse,
        p_better=seen.p_better,
        beyond_worse=seen.ratio > needed,
        beyond_better=seen.ratio < 1 / needed,
        launches=seen,
    )


def _too_few(one: Launches, tests: int, level: float) -> Finding:
    base, new = words.two_numbers(median(one.base), median(one.new))
    note = (
        f"{len(one.base)} and {len(one.new)} launches can tell nothing in {tests} tests; "
        f"it takes {launches_needed(level)} a side, run in turns"
    )
    return Finding(kind=Kind.NOT_COMPARABLE, key=one.key, metric=one.metric, base=base, new=new, note=note)


def _evidence(test: ChanceTest, level: float, p: float, *, within: bool) -> str:
    interval = ""
    if test.launches is not None:
        low, high = test.launches.interval(level)
        interval = f", interval x{low:.4g} to x{high:.4g}"
    clear = f"{test.note}{interval}, p = {p:.2g}, judged at {level:.2g}"
    return f"{clear}; worse, but within the limit" if within else clear


def _finding(kind: Kind, test: ChanceTest, note: str) -> Finding:
    return Finding(
        kind=kind, key=test.key, metric=test.metric, base=test.base, new=test.new, limit=test.limit, note=note
    )
