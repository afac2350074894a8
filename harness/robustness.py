"""Judgements of the suite ``robustness``: a refusal says what is wrong, and leaves everything as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.targets.base import Output
from harness.targets.bmodel import get_state
from reports.schema import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.check import Check
    from harness.targets.base import Target
    from runtime.session import Session


def judge_refusals(check: Check, call: Callable[[], object], words: str) -> None:
    """*call* raises ValueError, and says *words*.

    Raises:
        AssertionError: it does not; says what it did.
    """
    __tracebackhide__ = True
    check.stage = Stage.RUN
    try:
        call()
    except ValueError as error:
        said = str(error)
    else:
        said = "nothing at all"
    check.metrics["refusals"] = check.metrics.get("refusals", 0) + 1
    check.equal(expected := f"ValueError: {words}", expected if words in said else said, "refusal")


def judge_as_before(
    check: Check, oracle: Target, session: Session, before: Sequence[int], after: Sequence[int]
) -> None:
    """A session that was fed *before* answers to *after* as the reference does.

    Raises:
        AssertionError: it does not; outside the caps.
    """
    __tracebackhide__ = True
    tokens = [*before, *after]
    want = oracle.run(tokens)
    logits = session.feed(after)
    check.logits(want, Output((len(tokens) - 1,), logits[None], []))
    check.state(want, get_state(session))


def tell_hidden(check: Check, net: str, *, hidden: bool) -> None:
    """Record, without a verdict, whether a NaN before the ReLU of the channel-mix was *hidden* by *net*."""
    check.metrics["nan_hidden"] = check.metrics.get("nan_hidden", 0) + hidden
    if hidden:
        check.notes.append(f"NaN in ffn.shift does not show in the logits of {net}: its ReLU gives 0 for NaN")
