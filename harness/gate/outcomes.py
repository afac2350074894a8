"""What became of a check on either side, and what that means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.gate.finding import Finding, Kind
from reports.schema import Outcome, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gate.finding import Key
    from reports.schema import Record

OUTCOME = "outcome"
"""The metric whose rule tells which cases are ignored."""

_P, _F, _E, _S = Outcome.PASSED, Outcome.FAILED, Outcome.EXPECTED_FAILURE, Outcome.SKIPPED
_NEVER = "the baseline never measured it"

_MEANING: dict[tuple[Outcome, Outcome], tuple[Kind, str]] = {
    (_P, _F): (Kind.REGRESSION, ""),
    (_P, _E): (Kind.REGRESSION, "it passed before it was expected to fail"),
    (_P, _S): (Kind.NOT_COMPARABLE, "no longer measured"),
    (_F, _P): (Kind.IMPROVED, ""),
    (_F, _F): (Kind.NOT_COMPARABLE, "it fails on both sides; a rule can ignore it by its case"),
    (_F, _E): (Kind.SHOWN, "it still fails, and now that is expected"),
    (_F, _S): (Kind.NOT_COMPARABLE, "no longer measured"),
    (_E, _P): (Kind.STALE, "it passes: take it off the list of expected failures, and make a new baseline"),
    (_E, _F): (Kind.REGRESSION, "it fails otherwise than expected"),
    (_E, _S): (Kind.NOT_COMPARABLE, "no longer measured"),
    (_S, _P): (Kind.NOT_COMPARABLE, _NEVER),
    (_S, _F): (Kind.NOT_COMPARABLE, _NEVER),
    (_S, _E): (Kind.NOT_COMPARABLE, _NEVER),
}
"""Of an outcome of BASE and one of NEW; pairs that are not here need no words."""


_MEANING_OF_ANOTHER_LIST: dict[tuple[Outcome, Outcome], tuple[Kind, str]] = {
    (_E, _P): (Kind.IMPROVED, "it passes, and is not expected to fail any more"),
    (_E, _F): (Kind.NOT_COMPARABLE, "it fails on both sides, and the list of NEW does not expect it"),
}
"""The same where NEW was judged by another list of expected failures, on which the check does not stand."""


def judge_outcomes(key: Key, base: Record, new: Record, *, same_known: bool = True) -> Finding | None:
    """Compare what became of a check; None where both passed, both were skipped, or both failed as expected.

    *same_known* tells whether one list of expected failures judged both.
    """
    pair = (base.outcome, new.outcome)
    if Outcome.INFRA in pair:
        note = (new if new.outcome is Outcome.INFRA else base).message.partition("\n")[0]
        return _finding(Kind.INFRA, key, base, new, note)
    if pair == (_F, _F) and base.stage and new.stage and _place(new.stage) < _place(base.stage):
        return _finding(Kind.REGRESSION, key, base, new, "it fails at an earlier stage")
    if pair not in _MEANING:
        return None
    kind, note = _MEANING[pair]
    unlisted = not same_known and new.expected is None
    if unlisted and pair in _MEANING_OF_ANOTHER_LIST and new.stage in {None, base.stage}:
        kind, note = _MEANING_OF_ANOTHER_LIST[pair]
    message = new.message.partition("\n")[0] if new.outcome is _F else ""
    return _finding(kind, key, base, new, "; ".join(filter(None, [note, message])))


def stale_expectation(key: Key, base: Record, new: Sequence[Record]) -> Finding | None:
    """Report a check that passed though it was expected to fail, be it in one launch of several."""
    passed = next((record for record in new if record.outcome is _P and record.expected is not None), None)
    if passed is None:
        return None
    note = "it passes: rwkv-tpu known update takes it off the list of expected failures"
    return _finding(Kind.STALE, key, base, passed, note)


def is_measured(base: Record, new: Record) -> bool:
    """Whether both sides asked at all."""
    return _S not in {base.outcome, new.outcome} and Outcome.INFRA not in {base.outcome, new.outcome}


def _finding(kind: Kind, key: Key, base: Record, new: Record, note: str) -> Finding:
    return Finding(kind=kind, key=key, metric=OUTCOME, base=_words(base), new=_words(new), limit="no worse", note=note)


def _words(record: Record) -> str:
    return record.outcome.value + (f" at {record.stage.value}" if record.stage else "")


def _place(stage: Stage) -> int:
    return list(Stage).index(stage)
