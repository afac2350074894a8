"""A checkpoint that was trained on tasks with one right answer still solves them, greedily, through the bmodels."""

import pytest

from compile.spec import GraphKind
from harness.greedy import decode_greedily, judge_stream
from harness.prompts import prompt
from harness.targets.bmodel import set_state
from runtime.session import Session

prefill = pytest.mark.graphs(GraphKind.PREFILL)

STREAM = 16
"""Tokens of a greedy stream."""


@prefill
def test_exact_match(case, device, model, check):
    """Every question is answered without a mistake."""
    if not model.questions:
        pytest.skip(f"{model.checkpoint.name} is not known to solve a task (suites/checkpoints.toml)")
    engine = device.engine(check, case, case.decode)
    ask(check, engine, model.questions)


@prefill
def test_tuned_state(case, device, model, check):
    """From its tuned state, the model answers questions that it cannot answer without."""
    if model.tuned is None:
        pytest.skip(f"no tuned state of {model.checkpoint.name} is known (suites/checkpoints.toml)")
    engine = device.engine(check, case, case.decode)
    ask(check, engine, model.tuned.questions, model.tuned.state.arrays())
    (question, *_) = model.tuned.questions
    without = "right" if answer(engine, question) == list(question.answer) else "wrong"
    check.equal("wrong", without, f"{question.task}: answer without the tuned state to {list(question.prompt)}")


@prefill
def test_greedy_stream(case, device, oracle, model, check):
    """Token by token, what it goes on with is what the reference goes on with; near-ties are no difference."""
    engine = device.engine(check, case, case.decode)
    asked = prompt(model, case.graph.T + 3, seed=8)
    with Session(engine) as session:
        judge_stream(check, oracle, asked, decode_greedily(session, asked, count=STREAM))


def ask(check, engine, questions, state=None):
    """Put every question to a new session; the first wrong answer fails the check."""
    check.metrics["questions"] = len(questions)
    for asked, question in enumerate(questions):
        check.metrics["exact_matches"] = asked
        got = answer(engine, question, state)
        check.equal(list(question.answer), got, f"{question.task}: answer to {list(question.prompt)}")
    check.metrics["exact_matches"] = len(questions)


def answer(engine, question, state=None):
    """Decode greedily, as many tokens as the right answer has."""
    got = []
    with Session(engine) as session:
        if state is not None:
            set_state(engine, session, state)
        logits = session.feed(question.prompt)
        for _ in question.answer:
            got.append(int(logits.argmax()))
            if len(got) < len(question.answer):
                logits = session.feed(got[-1:])
    return got
