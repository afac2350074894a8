"""What a report says first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from reports.lenient import Loaded
from reports.schema import Outcome

if TYPE_CHECKING:
    from reports.lenient import LoadedRun

SEVERITY = (Outcome.FAILED, Outcome.INFRA, Outcome.EXPECTED_FAILURE, Outcome.PASSED, Outcome.SKIPPED)
"""The worst first; what was skipped tells least, so that a case with one passed check has passed."""

_WORDS = {
    Outcome.PASSED: "passed",
    Outcome.FAILED: "failed",
    Outcome.EXPECTED_FAILURE: "failed as expected",
    Outcome.SKIPPED: "skipped",
    Outcome.INFRA: "without a verdict",
}
_OR_SKIPPED, _AND_EXPECTED = " or were skipped", ", were skipped or failed as expected"


class State(Enum):
    """How a verdict is meant."""

    GOOD = "good"
    BAD = "bad"
    DOUBTFUL = "doubtful"  # nothing failed, but something is missing


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of some runs.

    Attributes:
        headline: in a few words.
        details: how many checks came to what.
    """

    state: State
    headline: str
    details: str


def verdict_of(loaded: Loaded) -> Verdict:
    """Judge all runs together: what cannot be read goes before what was interrupted, that before what failed."""
    runs = loaded.runs
    outcomes = Counter(record.outcome for run in runs for record in run.file.records)
    if loaded.faults or outcomes[Outcome.FAILED] or _stale(loaded):
        state = State.BAD
    elif any(run.file.interrupted for run in runs) or _nothing(outcomes) or outcomes[Outcome.INFRA]:
        state = State.DOUBTFUL
    else:
        state = State.GOOD
    return Verdict(state, _headline(loaded, outcomes), _details(outcomes))


def verdict_of_run(run: LoadedRun) -> Verdict:
    """Judge one run."""
    return verdict_of(Loaded(runs=(run,)))


def _headline(loaded: Loaded, outcomes: Counter[Outcome]) -> str:
    runs = loaded.runs
    interrupted = sum(run.file.interrupted for run in runs)
    if loaded.faults:
        return f"Cannot be trusted: {_count(len(loaded.faults), 'fault')} in the records"
    if interrupted:
        return "Interrupted" if len(runs) == 1 else f"{interrupted} of {len(runs)} runs interrupted"
    if _nothing(outcomes):
        return f"Nothing measured: all {_count(outcomes.total(), 'check')} skipped" if outcomes else "Nothing measured"
    failed, infra, stale = outcomes[Outcome.FAILED], outcomes[Outcome.INFRA], _stale(loaded)
    checks = f"{outcomes.total()} checks" + (f" of {len(runs)} runs" if len(runs) > 1 else "")
    if failed or infra or stale:
        told = [f"{failed} of {checks} failed"] if failed else []
        told += [f"{infra} {'without' if failed else f'of {checks} without'} a verdict"] if infra else []
        told += [f"{_count(stale, 'stale expectation')}{'' if told else f' in {checks}'}"] if stale else []
        return ", ".join(told)
    return f"All {checks} passed{_AND_EXPECTED if outcomes[Outcome.EXPECTED_FAILURE] else _OR_SKIPPED}"


def _nothing(outcomes: Counter[Outcome]) -> bool:
    return outcomes.total() == outcomes[Outcome.SKIPPED]


def _details(outcomes: Counter[Outcome]) -> str:
    told = [f"{outcomes[outcome]:,} {_WORDS[outcome]}" for outcome in SEVERITY if outcomes[outcome]]
    return ": ".join(filter(None, [_count(outcomes.total(), "check"), ", ".join(told)]))


def _stale(loaded: Loaded) -> int:
    """How many failures were expected of checks that passed, or that are not there any more."""
    passed = [one for run in loaded.runs for one in run.file.records if one.outcome is Outcome.PASSED and one.expected]
    return len(passed) + sum(len(run.file.end.unmatched) for run in loaded.runs if run.file.end)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
