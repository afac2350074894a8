"""The figures: right by hand, equal to scipy's, and never a verdict where there is nothing to judge."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from harness.lambada.results import Result
from harness.lambada.statistics import NotFiniteError, Verdict, compare, mcnemar, summarise
from harness.lambada.words import comparison_words, hint_words, summary_words

log_likelihoods = st.floats(-50, 0)
pairs = st.lists(st.tuples(log_likelihoods, log_likelihoods), min_size=2, max_size=50)


def results(lls, correct=()):
    """Results of documents a, b, …; *correct* are the indices of the right ones."""
    return [
        Result(id=f"d{i}", log_likelihood=ll, correct=i in correct, log_probs=(ll,))
        for i, ll in enumerate(map(float, lls))
    ]


def broken(*names):
    """Results without a number."""
    return [Result(id=name, log_likelihood=None, correct=True, log_probs=(None,)) for name in names]


def test_summary_by_hand():
    """Log-likelihoods -1, -2, -3, -6, one of four right: mean -3, sd sqrt(14/3), so SE sqrt(14/12)."""
    summary = summarise(results([-1, -2, -3, -6], correct={2}))
    assert (summary.n, summary.correct) == (4, 1)
    assert summary.mean_ll == pytest.approx(-3)
    assert summary.mean_ll_se == pytest.approx(math.sqrt(14 / 12))
    assert summary.perplexity == pytest.approx(math.exp(3))
    assert summary.perplexity_se == pytest.approx(math.exp(3) * math.sqrt(14 / 12))
    assert summary.accuracy == pytest.approx(0.25)
    assert summary.accuracy_se == pytest.approx(math.sqrt(0.25 * 0.75 / 4))


def test_one_document_has_no_standard_error():
    """One document has a perplexity, and the words say that its error is unknown."""
    summary = summarise(results([-2]))
    assert summary.perplexity == pytest.approx(math.exp(2))
    assert (summary.mean_ll_se, summary.perplexity_se) == (None, None)
    assert "± unknown" in summary_words(summary)


def test_perplexity_beyond_all_numbers():
    """A hopeless model has an infinite perplexity, not a traceback."""
    with warnings.catch_warnings(action="error"):
        assert math.isinf(summarise(results([-1000, -1001])).perplexity)
        assert "perplexity inf" in summary_words(summarise(results([-1000, -1001])))
        assert math.isinf(compare(results([-1, -1]), results([-1000, -1001])).perplexity_ratio)


def test_broken_numbers_are_named():
    """A NaN or infinite log-likelihood is an error that counts the documents and names the first, in either target."""
    good, bad = results([-1, -2]), [*results([-1]), *broken("d1")]
    with pytest.raises(NotFiniteError, match=r"2 of 3 documents .* first x:"):
        summarise([*broken("x"), *results([-1]), *broken("y")])
    for first, second in ((good, bad), (bad, good), (bad, bad)):
        with pytest.raises(NotFiniteError, match="first d1"):
            compare(first, second)


def test_only_the_same_documents_are_compared():
    """Other documents, another order, more of them, or none at all are errors."""
    three = results([-1, -2, -3])
    for other in (three[:2], three[::-1], results([-1, -2, -3, -4]), []):
        with pytest.raises(ValueError, match="same documents"):
            compare(three, other)
    with pytest.raises(ValueError, match="at least one"):
        compare([], [])
    with pytest.raises(ValueError, match="at least one"):
        summarise([])


def test_comparison_by_hand():
    """Differences 0.1, 0.2, 0.3, 0.6: mean 0.3, sd sqrt(0.14/3), t on three degrees of freedom, 3.182 for 95 %."""
    first = results([-1, -2, -3, -4], correct={0, 1})
    second = results([-0.9, -1.8, -2.7, -3.4], correct={1, 2, 3})
    comparison = compare(first, second)
    se = math.sqrt(0.14 / 3 / 4)
    assert comparison.n == 4
    assert comparison.mean_difference == pytest.approx(0.3)
    assert comparison.difference_se == pytest.approx(se)
    assert comparison.t == pytest.approx(0.3 / se)
    assert comparison.interval == pytest.approx((0.3 - 3.182446 * se, 0.3 + 3.182446 * se))
    assert comparison.perplexity_ratio == pytest.approx(math.exp(-0.3))
    assert (comparison.largest_difference, comparison.largest_at) == (pytest.approx(0.6), "d3")
    assert (comparison.only_first, comparison.only_second) == (1, 2)
    assert comparison.mcnemar_p == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"), [(0, 0, None), (1, 0, 1.0), (5, 0, 2 / 32), (1, 7, 2 * 9 / 256), (3, 3, 1.0)]
)
def test_mcnemar_by_hand(only_first, only_second, p):
    """Two-sided, by counting: of 8 throws of a coin 1 + 8 in 256 ways give at most one head."""
    assert mcnemar(only_first, only_second) == (p if p is None else pytest.approx(p))
    assert mcnemar(only_second, only_first) == mcnemar(only_first, only_second)


@given(only_first=st.integers(0, 300), only_second=st.integers(0, 300))
def test_mcnemar_is_the_binomial_test(only_first, only_second):
    """It is scipy's exact binomial test."""
    assume(only_first + only_second)
    expected = stats.binomtest(only_first, only_first + only_second).pvalue
    assert mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-9)


@given(pairs=pairs)
def test_the_paired_t_test(pairs):
    """T, p and interval are those of scipy's paired test."""
    first, second = map(np.array, zip(*pairs, strict=True))
    assume((second - first).std() > 1e-6)
    comparison = compare(results(first), results(second))
    expected = stats.ttest_rel(second, first)
    assert comparison.t == pytest.approx(expected.statistic, rel=1e-9, abs=1e-12)
    assert comparison.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert comparison.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9, abs=1e-12)


@given(pairs=pairs, correct=st.tuples(st.sets(st.integers(0, 49)), st.sets(st.integers(0, 49))))
def test_swapping_the_targets(pairs, correct):
    """The other way round every difference has the other sign, and nothing else changes."""
    first, second = (results(lls, right) for lls, right in zip(zip(*pairs, strict=True), correct, strict=True))
    there, back = compare(first, second), compare(second, first)
    assert back.mean_difference == -there.mean_difference
    assert back.largest_difference == -there.largest_difference
    assert (back.difference_se, back.p, back.mcnemar_p) == (there.difference_se, there.p, there.mcnemar_p)
    assert back.t == -there.t
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]), abs=1e-12)
    assert (back.only_first, back.only_second) == (there.only_second, there.only_first)
    opposite = {Verdict.LOWER: Verdict.HIGHER, Verdict.HIGHER: Verdict.LOWER}
    assert back.verdict == opposite.get(there.verdict, there.verdict)


@given(pairs=pairs, constant=st.floats(-20, 20))
def test_adding_a_constant(pairs, constant):
    """A constant on one target moves the mean difference by it and leaves the error; on both it changes nothing."""
    first, second = map(np.array, zip(*pairs, strict=True))
    plain = compare(results(first), results(second))
    moved = compare(results(first), results(second + constant))
    both = compare(results(first + constant), results(second + constant))
    assert moved.mean_difference == pytest.approx(plain.mean_difference + constant, abs=1e-9)
    assert moved.difference_se == pytest.approx(plain.difference_se, abs=1e-9)
    assert both.mean_difference == pytest.approx(plain.mean_difference, abs=1e-9)


@given(lls=st.lists(log_likelihoods, min_size=2, max_size=20))
def test_equal_results_are_no_difference(lls):
    """The same numbers differ by exactly 0, with p = 1, and the words say so."""
    comparison = compare(results(lls), results(lls))
    assert (comparison.mean_difference, comparison.difference_se, comparison.t, comparison.p) == (0, 0, 0, 1)
    assert comparison.perplexity_ratio == 1
    assert comparison.verdict is Verdict.NOT_SEEN
    assert "gives exactly the numbers" in comparison_words(comparison, "one", "two")


def test_a_constant_difference():
    """Every document worse by the same amount: no error, no doubt."""
    comparison = compare(results([-1, -2, -4]), results([-1.5, -2.5, -4.5]))
    assert (comparison.difference_se, comparison.t, comparison.p) == (0, -math.inf, 0)
    assert comparison.interval == (-0.5, -0.5)
    assert comparison.verdict is Verdict.LOWER


def test_one_pair():
    """One document gives a difference and no verdict."""
    comparison = compare(results([-1], correct={0}), results([-9]))
    assert comparison.mean_difference == -8
    assert (comparison.difference_se, comparison.interval, comparison.t, comparison.p) == (None, None, None, None)
    assert comparison.verdict is Verdict.UNKNOWN
    assert "Verdict: none" in comparison_words(comparison, "one", "two")


def test_two_pairs():
    """Two documents are a wide interval: t(0.975) with one degree of freedom is 12.706."""
    comparison = compare(results([-1, -1]), results([-2, -4]))
    assert comparison.interval == pytest.approx((-2 - 12.7062, -2 + 12.7062), abs=1e-4)
    assert comparison.verdict is Verdict.NOT_SEEN


@pytest.mark.parametrize(
    ("shift", "spread", "verdict", "words"),
    [
        (-0.1, 0.2, Verdict.LOWER, "two differs from one: lower log-likelihood, by 0.1 nats"),
        (0.1, 0.2, Verdict.HIGHER, "two differs from one: higher log-likelihood, by 0.1 nats"),
        (0.0, 0.2, Verdict.NOT_SEEN, "no difference between two and one is seen"),
        (-1e-6, 2e-6, Verdict.NEGLIGIBLE, "surely by less than 0.001 nats"),
    ],
    ids=lambda value: value.value if isinstance(value, Verdict) else "",
)
def test_verdicts(shift, spread, verdict, words):
    """A shift is seen in either direction, spread alone is not, and rounding is called what it is."""
    rng = np.random.default_rng(0)
    first = rng.normal(-5, 4, 200)
    noise = rng.normal(0, spread, 200)
    comparison = compare(results(first), results(first + shift + noise - noise.mean()))
    assert comparison.verdict is verdict
    assert words in comparison_words(comparison, "one", "two")


def test_pairing_sees_what_errors_hide():
    """A target worse by 0.1 nats, whose own standard error is three times that, is told apart."""
    rng = np.random.default_rng(1)
    first = results(rng.normal(-5, 4, 200))
    second = results([result.log_likelihood - 0.1 + rng.normal(0, 0.2) for result in first])
    one, two = summarise(first), summarise(second)
    assert abs(one.mean_ll - two.mean_ll) < one.mean_ll_se
    comparison = compare(first, second)
    assert comparison.p < 1e-6
    assert comparison.verdict is Verdict.LOWER


def test_no_difference_is_seen_in_about_one_of_twenty():
    """Where the truth is no difference, the verdict is wrong as often as its level says, not more."""
    rng = np.random.default_rng(2)
    first = np.zeros(30)
    wrong = sum(
        compare(results(first), results(rng.normal(0, 1, 30))).verdict is not Verdict.NOT_SEEN for _ in range(1000)
    )
    assert 30 <= wrong <= 70


@pytest.mark.parametrize(
    ("first", "second", "tells", "words"),
    [
        (set(), set(), False, "0 and 0 of 40 documents right, too few"),
        (range(9), range(30), False, "9 and 30 of 40 documents right, too few"),
        (range(20), range(20), False, "20 and 20 of 40 documents right, the same ones"),
        (range(20), range(1, 20), True, "no difference by McNemar's test"),
        (range(20), range(40), True, "a difference by McNemar's test"),
    ],
)
def test_when_accuracy_tells_nothing(first, second, tells, words):
    """With too few right documents, or the same ones, the paired log-likelihood is the verdict, in so many words."""
    lls = range(-40, 0)
    comparison = compare(results(lls, first), results(lls, second))
    text = comparison_words(comparison, "one", "two")
    assert comparison.accuracy_tells is tells
    assert words in text
    assert ("the paired log-likelihood is the verdict" in text) is not tells


@pytest.mark.parametrize(("correct", "tells"), [(9, False), (10, True)])
def test_accuracy_of_one_target(correct, tells):
    """Below ten right documents accuracy is no figure to go by."""
    summary = summarise(results(range(-40, 0), range(correct)))
    assert summary.accuracy_tells is tells
    assert f"N 40, perplexity {summary.perplexity:.6g} ± " in summary_words(summary)
    assert f"{correct} of 40 documents right" in hint_words(summary)
