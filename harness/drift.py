"""Whether a long text drives a bmodel away from the reference: divergence against position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.prompts import prompt
from harness.targets.base import Output
from harness.targets.bmodel import BmodelTarget

if TYPE_CHECKING:
    from harness.cases import Case
    from harness.check import Check
    from harness.checkpoints import Model
    from harness.targets.base import Target
    from runtime.engine import Engine

TOKENS = 4096


def judge_drift(check: Check, engine: Engine, case: Case, model: Model, oracle: Target, tokens: int = TOKENS) -> None:
    """From the zero state, over *tokens* tokens or a chunk's rest more: logits of every position, and the last state.

    The record has the whole curve, and the mean KL divergence of the first and of the last quarter beside each other.

    Raises:
        AssertionError: outside the caps, or the mean of the last quarter is, though that of all is not.
        RuntimeFault: it does not run.
    """
    __tracebackhide__ = True
    text = prompt(model, -(-tokens // case.graph.T) * case.graph.T, seed=18)
    want = oracle.run(text)
    got = BmodelTarget(engine, case.net).run(text)
    check.logits(want, got)
    check.state(want, got.state)
    quarter = len(got.positions) // 4
    kl = np.array([check.kl_by_position[position] for position in got.positions])
    check.metrics["drift_first_kl_mean_nats"] = float(kl[:quarter].mean())
    check.metrics["drift_last_kl_mean_nats"] = float(kl[-quarter:].mean())
    check.logits(want, Output(got.positions[-quarter:], got.logits[-quarter:], []))
