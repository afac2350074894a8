"""A checkpoint that was trained on a task with one right answer still solves it, greedily, through the bmodels."""

import pytest

from compile.spec import GraphKind
from runtime.session import Session


@pytest.mark.graphs(GraphKind.PREFILL)
def test_exact_match(case, device, model, check):
    """Every question of the task is answered without a mistake."""
    if model.task is None:
        pytest.skip(f"{model.checkpoint.name} is not known to solve a task (suites/checkpoints.toml)")
    engine = device.engine(check, case, case.decode)
    questions = model.task.questions()
    for asked, question in enumerate(questions):
        answer = []
        with Session(engine) as session:
            logits = session.feed(question.prompt)
            for _ in question.answer:
                answer.append(int(logits.argmax()))
                if len(answer) < len(question.answer):
                    logits = session.feed([answer[-1]])
        check.metrics["exact_matches"] = asked
        check.equal(list(question.answer), answer, f"answer to {list(question.prompt)}")
    check.metrics["exact_matches"] = len(questions)
