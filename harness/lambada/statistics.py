"""What per-document results say about one target, and about the difference of two on the same documents.

Log-likelihoods are natural logarithms of the probability of a document's last word, so their unit is nats a document.
A standard error is that of a mean over documents: sd / sqrt(n), with n - 1 in the standard deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.lambada.results import Result

LEVEL = 0.95
"""Confidence of the interval; a difference is seen where it leaves out zero."""

NEGLIGIBLE_NATS = 1e-3
"""A difference below this is a tenth of a per cent of the perplexity: rounding, with statistics or without."""

FEWEST_CORRECT = 10
"""With fewer right documents accuracy is chance."""


class NotFiniteError(ValueError):
    """Log-likelihoods that are NaN or infinite: there is no mean to be had; names the documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a target makes of n documents. A standard error is None where one document cannot tell it.

    Attributes:
        n: documents.
        correct: documents whose last word is the likeliest, token by token.
        mean_ll: mean log-likelihood in nats a document, and its standard error.
        perplexity: per word, exp(-mean_ll), and its standard error by the delta method, perplexity x mean_ll_se.
        accuracy: share of correct documents, and its standard error, sqrt(accuracy (1 - accuracy) / n).
    """

    n: int
    correct: int
    mean_ll: float
    mean_ll_se: float | None
    perplexity: float
    perplexity_se: float | None
    accuracy: float
    accuracy_se: float

    @property
    def accuracy_tells(self) -> bool:
        """Whether enough documents are right for accuracy to mean anything."""
        return self.correct >= FEWEST_CORRECT


def summarise(results: Sequence[Result]) -> Summary:
    """Summarise results.

    Raises:
        NotFiniteError: a log-likelihood is no finite number.
        ValueError: there are no results.
    """
    lls = _log_likelihoods(results)
    n, correct = len(results), sum(result.correct for result in results)
    mean = float(lls.mean())
    se = _standard_error(lls)
    perplexity, accuracy = _exp(-mean), correct / n
    return Summary(
        n=n,
        correct=correct,
        mean_ll=mean,
        mean_ll_se=se,
        perplexity=perplexity,
        perplexity_se=None if se is None else perplexity * se,
        accuracy=accuracy,
        accuracy_se=math.sqrt(accuracy * (1 - accuracy) / n),
    )


class Verdict(Enum):
    """What the paired log-likelihoods say about the second target.

    Either direction is a deviation: rounding can well make the right words likelier to a model that is mostly wrong.
    """

    LOWER = "lower log-likelihood"
    HIGHER = "higher log-likelihood"
    NEGLIGIBLE = "negligible"  # a difference is seen, but certainly one below NEGLIGIBLE_NATS
    NOT_SEEN = "no difference seen"
    UNKNOWN = "unknown"  # one document


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How the second target differs from the first, document by document.

    Attributes:
        n: documents.
        mean_difference: log-likelihood of the second less that of the first, in nats a document.
        difference_se: its standard error. This and all that rests on it is None for a single document.
        interval: where the true mean difference lies, with confidence LEVEL, by Student's t.
        t: mean_difference / difference_se.
        p: two-sided, of the paired t-test.
        perplexity_ratio: the second's perplexity over the first's.
        largest_difference: in nats, the one of largest size, with its sign.
        largest_at: id of that document.
        correct: documents that the first and the second have right.
        only_first: documents that only the first has right.
        only_second: documents that only the second has right.
        mcnemar_p: two-sided, of McNemar's exact test; None where no document tells them apart.
    """

    n: int
    mean_difference: float
    difference_se: float | None
    interval: tuple[float, float] | None
    t: float | None
    p: float | None
    perplexity_ratio: float
    largest_difference: float
    largest_at: str
    correct: tuple[int, int]
    only_first: int
    only_second: int
    mcnemar_p: float | None

    @property
    def accuracy_tells(self) -> bool:
        """Whether accuracy can tell anything: both targets have enough right, and not just the same documents."""
        return min(self.correct) >= FEWEST_CORRECT and self.mcnemar_p is not None

    @property
    def verdict(self) -> Verdict:
        """What the paired log-likelihoods say about the second target."""
        if self.interval is None:
            return Verdict.UNKNOWN
        low, high = self.interval
        if low <= 0 <= high:
            return Verdict.NOT_SEEN
        if max(-low, high) < NEGLIGIBLE_NATS:
            return Verdict.NEGLIGIBLE
        return Verdict.HIGHER if low > 0 else Verdict.LOWER


def compare(first: Sequence[Result], second: Sequence[Result]) -> Comparison:
    """Compare two targets' results on the same documents, in the same order.

    Raises:
        NotFiniteError: a log-likelihood is no finite number.
        ValueError: the documents differ, or there are none.
    """
    if [a.id for a in first] != [b.id for b in second]:
        raise ValueError(f"{len(first)} and {len(second)} results, but should be of the same documents in one order")
    differences = _log_likelihoods(second) - _log_likelihoods(first)
    n, mean, se = len(differences), float(differences.mean()), _standard_error(differences)
    t = p = interval = None
    if se is not None:
        half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * se
        interval = (mean - half, mean + half)
        t = mean / se if se else math.copysign(math.inf, mean) if mean else 0.0
        p = 2 * float(stdtr(n - 1, -abs(t)))
    largest = int(np.abs(differences).argmax())
    only_first = sum(a.correct and not b.correct for a, b in zip(first, second, strict=True))
    only_second = sum(b.correct and not a.correct for a, b in zip(first, second, strict=True))
    return Comparison(
        n=n,
        mean_difference=mean,
        difference_se=se,
        interval=interval,
        t=t,
        p=p,
        perplexity_ratio=_exp(-mean),
        largest_difference=float(differences[largest]),
        largest_at=first[largest].id,
        correct=(sum(a.correct for a in first), sum(b.correct for b in second)),
        only_first=only_first,
        only_second=only_second,
        mcnemar_p=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float | None:
    """Two-sided p of McNemar's exact test: are the two counts the throws of one fair coin? None for no throws."""
    throws = only_first + only_second
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), throws, 0.5))) if throws else None


def _log_likelihoods(results: Sequence[Result]) -> np.ndarray:
    if not results:
        raise ValueError("no results, but should be at least one")
    finite = [result.log_likelihood for result in results if result.log_likelihood is not None]
    if len(finite) < len(results):
        bad = [result.id for result in results if result.log_likelihood is None]
        raise NotFiniteError(
            f"{len(bad)} of {len(results)} documents have a log-likelihood that is NaN or infinite, first {bad[0]}: "
            "the target's logits are broken, and there is no perplexity"
        )
    return np.array(finite)


def _standard_error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def _exp(x: float) -> float:
    """As math.exp, but infinite where that overflows: a perplexity may be beyond all numbers."""
    with np.errstate(over="ignore"):
        return float(np.exp(x))
