"""LAMBADA as a check of the suites: a bmodel and its oracle on the same documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.lambada.results import Result
from harness.lambada.statistics import NotFiniteError, compare, summarise
from harness.targets.base import Score
from harness.targets.bmodel import BmodelScorer
from reports.schema import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.check import Check
    from harness.targets.base import Target, Text
    from runtime.engine import Engine

SIMULATED = 32
"""Documents on the simulator."""

ON_BOARD = 500


def judge_documents(check: Check, engine: Engine, oracle: Target, texts: Mapping[str, Text]) -> None:
    """Score each document by the bmodel's nets together and by the oracle; see :mod:`harness.lambada.statistics`.

    Args:
        check: judges and remembers.
        engine: a decode net and those prefill nets that go with it.
        oracle: the reference of the case's precision.
        texts: by document id.

    Raises:
        AssertionError: a log-likelihood is not finite, or the mean difference is surely larger than its cap: the whole
            interval of confidence lies beyond it.
        RuntimeFault: it does not run.
    """
    __tracebackhide__ = True
    cap = check.lambada_nats
    check.stage = Stage.RUN
    scorer = BmodelScorer(engine, identity={}, description="")
    got = [Result.of(name, *scorer.score([text])) for name, text in texts.items()]
    want = [Result.of(name, _reference(oracle, text)) for name, text in texts.items()]
    check.stage = Stage.NUMERICS
    check.metrics["lambada_documents"] = len(texts)
    try:
        summary, before, found = summarise(got), summarise(want), compare(want, got)
    except NotFiniteError as error:
        raise AssertionError(str(error)) from error
    check.metrics |= {
        "lambada_log_likelihood": summary.mean_ll,
        "lambada_perplexity": summary.perplexity,
        "lambada_accuracy": summary.accuracy,
        "lambada_reference_perplexity": before.perplexity,
        "lambada_reference_accuracy": before.accuracy,
        "lambada_perplexity_ratio": found.perplexity_ratio,
    }
    if found.difference_se is None or found.interval is None:
        return
    check.metrics["lambada_perplexity_ratio_se"] = found.perplexity_ratio * found.difference_se
    low, high = found.interval
    beyond = max(low - cap, -high - cap)
    words = f"{found.mean_difference:+.4f} nats a document, 95% interval {low:+.4f} to {high:+.4f}"
    if not beyond <= 0:
        raise AssertionError(f"log-likelihood differs from the reference's by {words}, but should by at most {cap:g}")


def _reference(oracle: Target, text: Text) -> Score:
    prompt, continuation = text
    logits = oracle.run([*prompt, *continuation[:-1]]).logits
    return Score.of(logits[-len(continuation) :], continuation)
