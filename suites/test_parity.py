"""The logits are the reference's, at every position that a graph gives."""

import pytest

from compile.spec import GraphKind
from harness.parity import judge_from_random_state, judge_from_zero_state


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
