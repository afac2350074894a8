"""The gate itself: two sides and the rules in, findings out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.gate.chance import judge
from harness.gate.checks import Comparison
from harness.gate.comparability import Comparability, comparability, refusals, unknown_names, within
from harness.gate.finding import Finding, Key, Kind, exit_code
from harness.gate.outcomes import OUTCOME
from harness.gate.paired import compare_lambada
from reports.schema import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection

    from harness.gate.rules import Rules
    from harness.gate.sides import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a gate found.

    Attributes:
        findings: all that is to be told.
        compared: the thing compared, a part of the manifest; empty where nothing of that kind differs.
        checks: how many checks were measured on both sides.
        values: how many values of metrics were compared under a verdict.
        tests: how many of these were tests in which chance has a part.
        notes: what a reader must know of the whole.
    """

    base: Side
    new: Side
    findings: tuple[Finding, ...]
    comparability: Comparability
    checks: int
    values: int
    tests: int
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regression, 2 stale expectations, 3 nothing measured or not comparable, 4 infrastructure."""
        return exit_code(self.findings)


def gate(base: Side, new: Side, rules: Rules, allow: Collection[str] = ()) -> Report:
    """Compare *new* with *base*; differences of the manifests named in *allow* are accepted."""
    found = comparability(base, new, candidates=rules.compared, allow=allow)
    comparison = Comparison(rules=rules, same_release=found.same_release, same_known=found.same_known)
    findings = comparison.findings
    findings += unknown_names(allow)
    for side in (base, new):
        findings += [Finding(kind=Kind.NOT_COMPARABLE, note=fault) for fault in side.faults]
        findings += within(side, allow) + _sick(side)
    findings += _unmatched(new)
    findings += refusals(found)
    notes: list[str] = []
    if _untold_changes(base, new):
        notes.append("Files of the harness were changed since their commit: it does not tell what ran.")
    tests = 0
    if not found.refused:
        comparison.checks_of(base, new)
        pairs, odd = compare_lambada(base.lambada, new.lambada, rules, allow=allow, compared=found.compared)
        findings += odd
        pairs += comparison.documents
        tests = len(comparison.launches) + len(pairs)
        findings += judge(comparison.launches, pairs, rules.family_alarm_rate)
        comparison.stale_rules(base, new)
        if not comparison.checks and not pairs:
            findings.append(Finding(kind=Kind.NOT_COMPARABLE, note="nothing was measured on both sides"))
        if comparison.launches and not _in_turns(base, new):
            notes.append(
                "One side was measured before the other: a drift of the machine over time looks like a change. "
                "Launch BASE and NEW in turns."
            )
    return Report(
        base=base,
        new=new,
        findings=tuple(findings),
        comparability=found,
        checks=comparison.checks,
        values=comparison.values,
        tests=tests,
        notes=tuple(notes),
    )


def _sick(side: Side) -> list[Finding]:
    """Report canaries that failed: nothing that the board said around them is a verdict."""
    return [
        Finding(
            kind=Kind.INFRA,
            key=Key(record.case, record.suite, record.check),
            metric=OUTCOME,
            note=f"{launch.path}: {record.message.partition(chr(10))[0]}",
        )
        for launch in side.launches
        for record in launch.canaries
        if record.outcome is not Outcome.PASSED
    ]


def _unmatched(new: Side) -> list[Finding]:
    """Report expectations of failures that match no check any more, each once."""
    titles = [title for launch in new.launches if launch.file.end for title in launch.file.end.unmatched]
    return [
        Finding(kind=Kind.STALE, metric=OUTCOME, note=f"a failure is expected of {title}: it matches nothing any more")
        for title in dict.fromkeys(titles)
    ]


def _untold_changes(base: Side, new: Side) -> bool:
    """Whether a commit does not tell what ran: files were changed, and nothing says how."""
    return any(launch.file.run.harness.get("changed") == "true" for side in (base, new) for launch in side.launches)


def _in_turns(base: Side, new: Side) -> bool:
    """Whether neither side was done before the other began; times as they were written, of one machine."""
    old, young = ([launch.file.run.started for launch in side.launches] for side in (base, new))
    return min(young) <= max(old) and min(old) <= max(young)
