"""Results in words, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.lambada.statistics import FEWEST_CORRECT, LEVEL, NEGLIGIBLE_NATS, Verdict

if TYPE_CHECKING:
    from harness.lambada.statistics import Comparison, Summary


def summary_words(summary: Summary) -> str:
    """One line of figures."""
    return (
        f"N {summary.n}, perplexity {summary.perplexity:.6g} ± {_or_unknown(summary.perplexity_se)}, "
        f"accuracy {summary.accuracy:.2%} ± {summary.accuracy_se:.2%} ({summary.correct} right), "
        f"log-likelihood {summary.mean_ll:.6g} ± {_or_unknown(summary.mean_ll_se)} nats a document"
    )


def hint_words(summary: Summary) -> str:
    """What to do where accuracy is no help and there is one target only."""
    return (
        f"Accuracy tells nothing with {summary.correct} of {summary.n} documents right: "
        "name two targets, and their paired log-likelihood is the verdict."
    )


def comparison_words(comparison: Comparison, first: str, second: str) -> str:
    """The paired comparison of the target called *second* with the one called *first*: figures, then the verdict."""
    c = comparison
    lines = [
        f"{second} against {first}, paired, N {c.n}:",
        f"  log-likelihood  difference {c.mean_difference:+.4g} ± {_or_unknown(c.difference_se)} nats a document"
        + (f", {LEVEL:.0%} interval {c.interval[0]:+.4g} to {c.interval[1]:+.4g}" if c.interval else "")
        + (f", p = {c.p:.2g}" if c.p is not None else ""),
        f"                  largest {c.largest_difference:+.4g} nats, document {c.largest_at}",
        f"  perplexity      ratio {c.perplexity_ratio:.6g}",
        f"  accuracy        right: only {first} {c.only_first}, only {second} {c.only_second}"
        + (f"; McNemar p = {c.mcnemar_p:.2g}" if c.mcnemar_p is not None else ""),
        f"Verdict: {_verdict(c, first, second)}",
        _accuracy(c, first, second),
    ]
    return "\n".join(lines)


def _verdict(c: Comparison, first: str, second: str) -> str:
    """What the log-likelihoods say, in a sentence."""
    match c.verdict:
        case Verdict.UNKNOWN:
            return "none: one document has no standard error; score more."
        case Verdict.NOT_SEEN if not c.largest_difference:
            return f"{second} gives exactly the numbers of {first}."
        case Verdict.NOT_SEEN:
            return (
                f"no difference between {second} and {first} is seen; "
                "what the interval leaves open, more documents would tell."
            )
        case Verdict.NEGLIGIBLE:
            return (
                f"{second} and {first} differ, but surely by less than {NEGLIGIBLE_NATS:g} nats a document, "
                f"{NEGLIGIBLE_NATS:.1%} of the perplexity."
            )
        case Verdict.LOWER | Verdict.HIGHER:
            return (
                f"{second} differs from {first}: {c.verdict.value}, by {abs(c.mean_difference):.4g} nats a document; "
                f"its perplexity is {c.perplexity_ratio:.6g} times as large."
            )


def _accuracy(c: Comparison, first: str, second: str) -> str:
    """What accuracy adds, in a sentence."""
    if c.accuracy_tells and c.mcnemar_p is not None:
        seen = "a" if c.mcnemar_p < 1 - LEVEL else "no"
        return f"Accuracy shows {seen} difference by McNemar's test."
    right = f"{c.correct[0]} and {c.correct[1]} of {c.n} documents right"
    why = "too few" if min(c.correct) < FEWEST_CORRECT else "the same ones"
    return (
        f"Accuracy tells nothing here ({first} and {second} have {right}, {why}): "
        "the paired log-likelihood is the verdict."
    )


def _or_unknown(se: float | None) -> str:
    return "unknown" if se is None else f"{se:.3g}"
