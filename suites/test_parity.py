"""The logits are the reference's, at every position that a graph gives."""

import pytest

from compile.spec import GraphKind
from harness.parity import judge_from_random_state, judge_from_zero_state, judge_one_token_repeated

EVERY_POSITION = (GraphKind.DECODE, GraphKind.PREFILL_ALL)
"""Graphs that give logits of every position."""


@pytest.mark.graphs(*GraphKind)
def test_from_zero_state(case, device, oracle, full_precision, model, check):
    """From the zero state, over text: logits of every position, and the state after the last."""
    judge_from_zero_state(check, device.engine(check, case), case, model, oracle, full_precision)


@pytest.mark.graphs(*GraphKind)
def test_from_random_state(case, device, oracle, model, check, random_state):
    """From a state that is not zero, over any tokens; and the state keeps its format.

    An exporter that assumes zeros is right in the test above, and wrong here.
    """
    judge_from_random_state(check, device.engine(check, case), case, model, oracle, random_state)


@pytest.mark.graphs(*EVERY_POSITION)
def test_one_token_repeated(case, device, oracle, model, check, random_state):
    """One token again and again, from a state that is not zero."""
    judge_one_token_repeated(check, device.engine(check, case), case, model, oracle, random_state)


@pytest.mark.graphs(*EVERY_POSITION, only="shortest")
def test_hard_weights(case, device, hard, check, random_state):
    """Decays at both ends, in-context rates next to 1, outliers in weights and activations: a model made of such."""
    engine = device.engine(check, case, model=hard.model)
    check.of_hard_weights()
    judge_from_zero_state(check, engine, case, hard.model, hard.oracle)
    judge_from_random_state(check, engine, case, hard.model, hard.oracle, random_state)
