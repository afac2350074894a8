"""The recurrent state means the same to every graph: whole chunks by prefill, the rest by decode."""

import pytest

from compile.spec import GraphKind
from harness.parity import judge_format
from harness.prompts import prompt
from harness.targets.base import Output
from harness.targets.bmodel import BmodelTarget, get_state, set_state
from runtime.session import Session

prefill = pytest.mark.graphs(GraphKind.PREFILL)


@prefill
def test_prefill_equals_decode(case, device, oracle, model, check, random_state):
    """T tokens at once and one by one lead to the same state, from a state that is not zero, and keep its format."""
    engine = device.engine(check, case, case.decode)
    tokens = prompt(model, case.graph.T, seed=2)
    at_once = BmodelTarget(engine, case.net).run(tokens, random_state)
    one_by_one = BmodelTarget(engine, case.decode.net).run(tokens, random_state)
    want = oracle.run(tokens, random_state)
    check.state(want.state, at_once.state)
    check.state(want.state, one_by_one.state)
    check.logits(one_by_one.logits, at_once)
    judge_format(check, engine, at_once.state)


@prefill
def test_every_tail(case, device, oracle, model, check):
    """A prompt that is no multiple of the chunk ends in decode steps: every length of that tail is right."""
    engine = device.engine(check, case, case.decode)
    T = case.graph.T
    tokens = prompt(model, 2 * T - 1, seed=3)
    want = oracle.run(tokens)
    with Session(engine) as session:
        chunk = session.feed(tokens[:T])
        check.logits(want.logits, Output((T - 1,), chunk[None], []))
        for position in range(T, len(tokens)):
            logits = session.feed(tokens[position : position + 1])
            check.logits(want.logits, Output((position,), logits[None], []))
            check.state(oracle.run(tokens[: position + 1]).state, get_state(session))


@prefill
def test_feed_cuts_prompts(case, device, oracle, model, check, random_state):
    """Two chunks and a tail, cut by the runtime itself, from a state that is not zero."""
    engine = device.engine(check, case, case.decode)
    tokens = prompt(model, 2 * case.graph.T + 3, seed=4)
    want = oracle.run(tokens, random_state)
    with Session(engine) as session:
        set_state(engine, session, random_state)
        logits = session.feed(tokens)
        check.logits(want.logits, Output((len(tokens) - 1,), logits[None], []))
        check.state(want.state, get_state(session))


@prefill
def test_sessions_are_independent(case, device, oracle, model, check):
    """Two streams fed in turn do not see each other, and a reset one starts anew."""
    engine = device.engine(check, case, case.decode)
    first, second = prompt(model, case.graph.T + 2, seed=5), prompt(model, case.graph.T + 2, seed=6)
    with Session(engine) as one, Session(engine) as other:
        for start, stop in ((0, case.graph.T), (case.graph.T, case.graph.T + 2)):
            one.feed(first[start:stop])
            other.feed(second[start:stop])
        check.state(oracle.run(first).state, get_state(one))
        check.state(oracle.run(second).state, get_state(other))
        one.reset()
        one.feed(second[:2])
        check.state(oracle.run(second[:2]).state, get_state(one))
