"""The gate's statistics: exact where they claim to be, and what they do on a made-up board."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.gate.family import levels
from harness.gate.noisy import can_tell, change, cumulative, launches_needed
from tests.gate_simulation import Board, alarms, alarms_of_calls, found

PAIRS = 1000
VALUES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 5), (10, 10), (12, 7)])
def test_as_mann_and_whitney(n, m):
    """Both one-sided p are scipy's exact ones, for values without ties."""
    rng = np.random.default_rng(n)
    base, new = rng.lognormal(0, 1, n), rng.lognormal(0.3, 1, m)
    ours = change(base, new)
    for p, side in ((ours.p_worse, "greater"), (ours.p_better, "less")):
        assert p == pytest.approx(stats.mannwhitneyu(new, base, alternative=side, method="exact").pvalue)


@given(VALUES, VALUES, st.floats(1e-6, 0.4))
def test_interval_and_p_agree(base, new, level):
    """The interval excludes 1 exactly where a p is at most the level, ties included."""
    seen = change(base, new)
    low, high = seen.interval(level)
    assert low <= high
    assert (low > 1) == (seen.p_worse <= level)
    assert (high < 1) == (seen.p_better <= level)


@given(VALUES)
def test_a_side_and_itself(values):
    """No change, and no evidence of one."""
    seen = change(values, values)
    assert seen.ratio == pytest.approx(1)
    assert min(seen.p_worse, seen.p_better) >= 0.5


@given(VALUES, VALUES, st.floats(0.01, 100))
def test_units_do_not_matter(base, new, unit):
    """Seconds or milliseconds: the same ratio."""
    seen = change([unit * x for x in base], [unit * x for x in new])
    assert seen.ratio == pytest.approx(change(base, new).ratio)


def test_the_interval_covers():
    """Of many measurements with a true ratio of 1.1, at most twice the level leave it outside."""
    rng = np.random.default_rng(4)
    outside = 0
    for _ in range(2000):
        low, high = change(rng.lognormal(0, 0.1, 8), 1.1 * rng.lognormal(0, 0.1, 8)).interval(0.025)
        outside += not low <= 1.1 <= high
    assert outside / 2000 <= 0.06


def test_noise_is_that_of_the_noisier_side():
    """The typical ratio of two launches of one side; an outlier does not move it much."""
    quiet, loud = [1.0, 1.0, 1.0, 1.0], [1.0, 1.1, 1.0, 1.1]
    assert change(quiet, quiet).noise == 1
    assert change(quiet, loud).noise == pytest.approx(1.1)
    assert change(loud, quiet).noise == pytest.approx(1.1)
    assert change([*quiet, 9.0], quiet).noise == 1


@pytest.mark.parametrize("values", [[], [0.0], [-1.0], [math.nan], [math.inf]])
def test_what_is_no_time(values):
    """Nothing, zero, below zero, NaN and infinite ones are refused."""
    with pytest.raises(ValueError, match="above zero and finite"):
        change(values, [1.0])


def test_too_few_launches():
    """What cannot be seen at all has an interval of all numbers."""
    assert change([1.0] * 3, [9.0] * 3).interval(0.01) == (0, math.inf)
    assert launches_needed(0.01) == 5
    assert can_tell(5, 5, 0.01)
    assert not can_tell(4, 4, 0.01)


def test_the_distribution_is_one():
    """It ends at 1, and is as likely seen from either end."""
    below = cumulative(4, 6)
    assert below[-1] == 1
    assert np.allclose(below[:-1], 1 - below[-2::-1])


def test_holm():
    """The clearest of three tests at a third of the rate, the next at a half, and no further than the first unseen."""
    assert levels([0.02, 0.001, 0.5], 0.03) == [0.015, 0.01, 0.015]
    assert levels([0.012, 0.001, 0.5], 0.03) == [0.015, 0.01, 0.03]
    assert levels([], 0.01) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_never_exceeds_its_rate(p_values):
    """Levels lie between those of Bonferroni and no correction, and clearer tests have smaller ones."""
    found_levels = levels(p_values, 0.01)
    assert all(0.01 / len(p_values) <= level <= 0.01 for level in found_levels)
    ordered = [level for _, level in sorted(zip(p_values, found_levels, strict=True))]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize("outliers", [0.01, 0.05])
def test_it_does_not_cry_wolf(outliers):
    """Of 1,000 pairs in which nothing changed, with drift and outliers, at most 1 % alarm."""
    assert alarms(Board(outliers=outliers), PAIRS, seed=1) <= 0.01


def test_it_sees_five_per_cent():
    """One metric of twenty is 5 % slower: found in at least 95 % of 300 pairs."""
    assert found(Board(), 300, seed=2) >= 0.95


def test_calls_are_no_launches():
    """Why one launch a side is refused: its many calls share one offset, and would cry wolf most of the time."""
    assert alarms_of_calls(Board(), 50, seed=3) > 0.1
