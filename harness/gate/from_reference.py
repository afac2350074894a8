"""Log-likelihoods of documents that a record sums up: both sides are that far from one reference, give or take.

NEW - BASE is the difference of two differences, of NEW and of BASE from the reference, each over the same documents and
each with its standard error. How the two go together no record tells, so that the error of NEW - BASE is taken for the
sum of both: it is never larger. The test sees less than one of pairs, and cries wolf no more often than it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scipy.special import stdtr

from harness.gate import words
from harness.gate.chance import ChanceTest
from harness.gate.paired import LOG_LIKELIHOOD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.gate.finding import Key
    from harness.gate.rules import Rule

DOCUMENTS = "lambada_documents"
RATIO, RATIO_SE = "lambada_perplexity_ratio", "lambada_perplexity_ratio_se"


def document_test(
    key: Key, rule: Rule, values: tuple[float, float], beside: tuple[Mapping[str, float | None], ...]
) -> ChanceTest | None:
    """Make the test of a mean log-likelihood of BASE and NEW, *beside* which stand their records' other metrics.

    None where a record has no standard error.
    """
    errors = [_standard_error(record) for record in beside]
    documents = [record.get(DOCUMENTS) or 0 for record in beside]
    if None in errors or min(documents) < 2:
        return None
    se, change = sum(error for error in errors if error is not None), values[1] - values[0]
    floor = rule.difference or 0.0
    # Without any scatter, as of bmodels that are the reference to the last digit, every change is one.
    t = change / se if se else change * float("inf") if change else 0.0
    freedom = min(documents) - 1
    base, new = words.two_numbers(*values)
    return ChanceTest(
        key=key,
        metric=LOG_LIKELIHOOD,
        base=base,
        new=new,
        limit=rule.limit,
        note=f"{change:+.4g} nats a document, standard error at most {se:.2g}, N {min(documents):g}",
        p_worse=float(stdtr(freedom, t)),
        p_better=float(stdtr(freedom, -t)),
        beyond_worse=change < -floor,
        beyond_better=change > floor,
    )


def _standard_error(record: Mapping[str, float | None]) -> float | None:
    """Of a mean log-likelihood less the reference's, in nats a document: a ratio's is by the delta method."""
    ratio, of_ratio = record.get(RATIO), record.get(RATIO_SE)
    return of_ratio / ratio if ratio and of_ratio is not None else None
