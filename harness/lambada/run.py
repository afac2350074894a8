"""Scores documents batch by batch, and no document twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.lambada.results import Result
from harness.lambada.statistics import NotFiniteError, summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.lambada.results import Results
    from harness.targets.base import Scorer, StateArrays, Text

LINE_EVERY = 100
"""Documents."""


def score_documents(
    scorer: Scorer,
    texts: Mapping[str, Text],
    results: Results,
    *,
    state: StateArrays | None = None,
    say: Callable[[str], None],
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Result, ...]:
    """Score the documents that have no result yet; a kill loses at most the batch in flight.

    Args:
        scorer: the target.
        texts: what to score, by document id.
        results: where results are kept.
        state: the initial state; None is the zero state.
        say: gets a line with the figures so far every LINE_EVERY documents.
        advance: gets the number of documents after each batch.

    Returns:
        The results of all *texts*, in their order.
    """
    so_far = [results[name] for name in texts if name in results]
    missing = [name for name in texts if name not in results]
    for start in range(0, len(missing), scorer.batch):
        names = missing[start : start + scorer.batch]
        scores = scorer.score([texts[name] for name in names], state)
        added = [Result.of(name, score) for name, score in zip(names, scores, strict=True)]
        results.add(added)
        advance(len(added))
        for result in added:
            so_far.append(result)
            if len(so_far) % LINE_EVERY == 0:
                say(f"{len(so_far)} of {len(texts)}: {_figures(so_far)}")
    return tuple(results[name] for name in texts)


def _figures(results: list[Result]) -> str:
    try:
        summary = summarise(results)
    except NotFiniteError as error:
        return str(error)
    return f"perplexity {summary.perplexity:.6g}, accuracy {summary.accuracy:.2%}"
