"""Greedy decoding beside the reference's: where the two may differ, and where not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.check import Check
    from harness.targets.base import StateArrays, Target
    from runtime.session import Session


def decode_greedily(session: Session, prompt: Sequence[int], count: int) -> list[int]:
    """Feed *prompt*, then *count* - 1 of the *count* tokens that are the likeliest, one by one; return them all."""
    logits = session.feed(prompt)
    stream = [int(logits.argmax())]
    while len(stream) < count:
        logits = session.feed(stream[-1:])
        stream.append(int(logits.argmax()))
    return stream


def judge_stream(
    check: Check, oracle: Target, prompt: Sequence[int], stream: Sequence[int], state: StateArrays | None = None
) -> None:
    """Each token of *stream* is the reference's likeliest after *prompt* and the tokens before it.

    Near-ties apart: a token that the reference holds for as likely as its own, to ``near_tie_nats``, is right too, and
    the streams go their own ways from there. The reference follows *stream*, so that each token is judged after the
    same text.

    Raises:
        AssertionError: a token is another one; names it, its place and how much likelier the reference's is.
    """
    __tracebackhide__ = True
    logits = oracle.run([*prompt, *stream[:-1]], state).logits[len(prompt) - 1 :]
    best = logits.argmax(axis=-1)
    behind = logits.max(axis=-1) - logits[np.arange(len(stream)), np.asarray(stream)]
    near = check.near_tie_nats
    check.metrics["greedy_tokens"] = check.metrics.get("greedy_tokens", 0) + len(stream)
    ties = int(((behind > 0) & (behind <= near)).sum())
    check.metrics["greedy_near_ties"] = check.metrics.get("greedy_near_ties", 0) + ties
    for place in np.flatnonzero(~(behind <= near)).tolist():
        what = f"token {place} of the stream, {behind[place]:.3g} nats behind the reference's (near-ties: {near} nats)"
        check.equal(int(best[place]), int(stream[place]), what)
