"""Whether a compiled case gives the reference's numbers: the judgement of the suite ``parity``, for others too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compile.spec import GraphKind
from harness.prompts import prompt
from harness.targets.bmodel import BmodelTarget

if TYPE_CHECKING:
    from harness.cases import Case
    from harness.check import Check
    from harness.checkpoints import Model
    from harness.targets.base import Output, StateArrays, Target
    from runtime.engine import Engine

TOKENS = 64  # a multiple of every chunk length up to itself

FROM_ANY_STATE = (GraphKind.DECODE, GraphKind.PREFILL_ALL)
"""Graphs that are judged from a random state too; of the other kind, the suite ``state`` does that."""


def judge_from_zero_state(
    check: Check, engine: Engine, case: Case, model: Model, oracle: Target, full: Target | None = None
) -> None:
    """From the zero state, over text: logits of every position that the graph gives, and the state after the last.

    Args:
        check: judges and remembers.
        engine: has the case's bmodel loaded.
        case: what is judged.
        model: the checkpoint.
        oracle: the reference of the case's precision (:func:`harness.oracle.oracle_for`).
        full: the reference with the checkpoint's own weights, where that is another one: recorded, not judged.

    Raises:
        AssertionError: outside the caps.
        RuntimeFault: it does not run.
    """
    __tracebackhide__ = True
    tokens = prompt(model, max(TOKENS, case.graph.T))
    got = _judge(check, engine, case, oracle, tokens)
    check.total((full or oracle).run(tokens).logits, got)


def judge_from_random_state(
    check: Check, engine: Engine, case: Case, model: Model, oracle: Target, state: StateArrays
) -> None:
    """The same from *state*, over half as many tokens.

    Raises:
        AssertionError, RuntimeFault: as above.
    """
    __tracebackhide__ = True
    _judge(check, engine, case, oracle, prompt(model, max(TOKENS // 2, case.graph.T), seed=1), state)


def _judge(
    check: Check, engine: Engine, case: Case, oracle: Target, tokens: list[int], state: StateArrays | None = None
) -> Output:
    __tracebackhide__ = True
    want = oracle.run(tokens, state)
    got = BmodelTarget(engine, case.graph.name).run(tokens, state)
    check.logits(want.logits, got)
    check.state(want.state, got.state)
    return got
