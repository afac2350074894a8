"""The metrics and caps: known values, and properties that must hold for any input."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compile.spec import Quantization
from harness.limits import Limits, load_limits
from harness.metrics import kl_divergence, log_softmax, logits_distance, nmse, state_nmse

LOGITS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 6), st.integers(2, 9)), elements=st.floats(-30, 30, allow_nan=False)
)
LIMITS = Limits(
    kl_mean_nats=1e-4,
    kl_worst_nats=1e-3,
    mean_from_positions=2,
    top1_share=0.99,
    near_tie_nats=0.1,
    state_nmse=1e-5,
)


def test_kl_of_known_distributions():
    """KL of (1/2, 1/2) from (1/4, 3/4) by hand: ln(4/3) / 2 + ln(2/3)/2 … computed the other way round."""
    p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(p, q)[0] == pytest.approx(by_hand, rel=1e-12)


@given(LOGITS)
def test_kl_of_itself_is_zero(logits):
    """No model is away from itself, nor from itself with all logits raised."""
    assert abs(kl_divergence(logits, logits + 5.0)).max() <= 1e-12


@given(LOGITS, st.integers(0, 2**16))
def test_kl_is_not_negative(logits, seed):
    """KL is never negative, but for rounding."""
    other = logits + np.random.default_rng(seed).normal(size=logits.shape)
    assert kl_divergence(logits, other).min() >= -1e-12


@given(LOGITS)
def test_log_softmax_sums_to_one(logits):
    """Probabilities sum to one at each position."""
    np.testing.assert_allclose(np.exp(log_softmax(logits)).sum(axis=-1), 1.0, rtol=1e-12)


def test_nmse_of_known_values():
    """0 is exact, 1 as bad as zeros, and a reference of zeros allows no error at all."""
    ones = np.ones(10, np.float32)
    assert nmse(ones, ones) == 0.0
    assert nmse(ones, 0 * ones) == 1.0
    assert nmse(ones, 1.1 * ones) == pytest.approx(0.01, rel=1e-5)
    assert nmse(0 * ones, 0 * ones) == 0.0
    assert nmse(0 * ones, ones) == math.inf


def test_near_ties_do_not_count():
    """A swap of two tokens that are as likely as each other is no disagreement; of others it is."""
    reference = np.array([[1.0, 1.05, -3.0], [4.0, 0.0, -3.0]])
    swapped = np.array([[1.05, 1.0, -3.0], [4.0, 0.0, -3.0]])
    distance = logits_distance(reference, swapped, near_tie_nats=0.1)
    assert (distance.near_ties, distance.top1_share) == (1, 1.0)
    assert logits_distance(reference, swapped, near_tie_nats=0.01).top1_share == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_fail_first(bad):
    """One NaN or Inf anywhere fails, and is located, whatever the rest looks like."""
    reference = np.zeros((4, 3))
    got = reference.copy()
    got[2, 1] = bad
    distance = logits_distance(reference, got, near_tie_nats=0.1)
    assert LIMITS.breaches(distance) == ["NaN or Inf among the logits, first at position 2"]


@given(LOGITS, st.integers(0, 2**16))
def test_kl_of_each_position(logits, seed):
    """Each position has its own; one that is not finite spoils no other, whatever becomes of worst and mean."""
    got = logits + np.random.default_rng(seed).normal(size=logits.shape)
    each = kl_divergence(logits, got)
    distance = logits_distance(logits, got, near_tie_nats=0.1)
    assert distance.kl_nats == pytest.approx(each)
    assert (max(distance.kl_nats), distance.kl_nats[distance.worst_position]) == (distance.kl_worst_nats,) * 2
    bad = seed % len(got)
    got[bad, 0] = math.nan
    each[bad] = math.nan
    assert logits_distance(logits, got, near_tie_nats=0.1).kl_nats == pytest.approx(each, nan_ok=True)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3, 1), (12,), (0, 3)])
def test_wrong_shapes(shape):
    """Logits of another shape are an error, never broadcast."""
    with pytest.raises(ValueError, match="logits of shape"):
        logits_distance(np.zeros((4, 3)) if shape != (0, 3) else np.zeros(shape), np.zeros(shape), near_tie_nats=0.1)


def test_breaches_name_metric_value_and_position():
    """Each cap that is broken is told with its value; the worst position is named."""
    reference = np.tile([2.0, 0.0, -1.0], (5, 1))
    got = reference.copy()
    got[3] = [0.0, 2.0, -1.0]
    mean, worst, top1 = LIMITS.breaches(logits_distance(reference, got, near_tie_nats=0.1))
    assert mean.startswith("kl_mean_nats=")
    assert "at position 3" in worst
    assert top1 == "top1_share=0.8000, but should be >= 0.99"


def test_the_mean_is_not_judged_on_few_positions():
    """On a position or two the mean is the worst: only the cap of the worst applies."""
    reference, got = np.array([[1.0, 0.0]]), np.array([[1.04, 0.0]])
    assert not LIMITS.breaches(logits_distance(reference, got, near_tie_nats=0.1))
    rows = np.repeat(reference, 2, axis=0), np.repeat(got, 2, axis=0)
    assert len(LIMITS.breaches(logits_distance(*rows, near_tie_nats=0.1))) == 1


def test_state_nmse_is_of_each_kind():
    """Layers are taken together, kinds apart; NaN in one is infinitely wrong, and no NMSE at all passes as NaN."""
    good = [np.ones(3), np.ones((2, 2)), np.ones(3), np.ones(3), np.ones((2, 2)), np.ones(3)]
    errors = state_nmse(good, [*good[:4], 1.1 * good[4], good[5]])
    assert errors == {"att.shift": 0.0, "att.state": pytest.approx(0.005), "ffn.shift": 0.0}
    assert LIMITS.state_breaches(errors) == ["state_nmse=5.00e-03 of att.state, but should be <= 1.0e-05"]
    assert state_nmse(good, [*good[:5], np.array([1.0, math.nan, 1.0])])["ffn.shift"] == math.inf
    assert LIMITS.state_breaches({"att.state": math.nan})
    with pytest.raises(ValueError, match="states of shapes"):
        state_nmse(good, good[:2])


def test_shipped_limits():
    """The caps that ship exist for F16; loosening one means changing it here too, and saying why in the file."""
    limits, _ = load_limits()
    f16 = limits[Quantization.F16]
    assert f16.kl_mean_nats <= 1e-4
    assert f16.kl_worst_nats <= 1e-2
    assert f16.top1_share >= 0.99
    assert f16.state_nmse <= 1e-4
