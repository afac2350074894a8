"""The logits are the reference's, at every position that a graph gives."""

import pytest

from compile.spec import GraphKind
from harness.prompts import prompt
from harness.targets.bmodel import BmodelTarget

TOKENS = 64  # a multiple of every chunk length up to itself


@pytest.mark.graphs(GraphKind.DECODE, GraphKind.PREFILL, GraphKind.PREFILL_ALL)
def test_from_zero_state(case, device, oracle, model, check):
    """From the zero state, over text: logits of every position, and the state after the last."""
    tokens = prompt(model, max(TOKENS, case.graph.T))
    want = oracle.run(tokens)
    got = BmodelTarget(device.engine(check, case), case.graph.name).run(tokens)
    check.logits(want.logits, got)
    check.state(want.state, got.state)


@pytest.mark.graphs(GraphKind.DECODE, GraphKind.PREFILL_ALL)
def test_from_random_state(case, device, oracle, model, check, random_state):
    """From a state that is not zero: an exporter that assumes zeros is right in the test above, and wrong here."""
    tokens = prompt(model, max(TOKENS // 2, case.graph.T), seed=1)
    want = oracle.run(tokens, random_state)
    got = BmodelTarget(device.engine(check, case), case.graph.name).run(tokens, random_state)
    check.logits(want.logits, got)
    check.state(want.state, got.state)
