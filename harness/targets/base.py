"""What every engine has in common: tokens and a state in, logits and a state out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from harness.metrics import log_softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

StateArrays = list[np.ndarray]
"""Float32, for each layer: time-mix shift ``[C]``, WKV ``[H, N, N]``, channel-mix shift ``[C]``."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a target gave for some tokens.

    Attributes:
        positions: indices of the tokens that have a row of logits; a prefill graph gives only the last of each chunk.
        logits: ``[len(positions), V]``.
        state: after the last token.
        emulated: of an oracle: what the same precision gives in torch, of the same tokens from the same state; computed
            when it is first called. None where nothing of the kind is known.
    """

    positions: tuple[int, ...]
    logits: np.ndarray
    state: StateArrays
    emulated: Callable[[], Output] | None = None


class Target(Protocol):
    """Takes tokens and gives logits and state."""

    def run(self, tokens: Sequence[int], state: StateArrays | None = None) -> Output:
        """Feed *tokens* from *state* (None: the zero state), which is not changed."""
        ...


Text = tuple["Sequence[int]", "Sequence[int]"]
"""A prompt and its continuation, as token ids; at least one of each."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a target says about a continuation of n tokens.

    Attributes:
        log_probs: ``[n]`` float64: natural log-probability of each token, given all before it.
        is_top: ``[n]`` bool: whether it was the likeliest one.
    """

    log_probs: np.ndarray
    is_top: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray, continuation: Sequence[int]) -> Score:
        """Judge *continuation* by the logits ``[n, V]`` of the n positions before its tokens."""
        rows, tokens = np.arange(len(continuation)), np.asarray(continuation)
        return cls(log_softmax(logits)[rows, tokens], logits.argmax(axis=-1) == tokens)


class Scorer(Protocol):
    """A target that says how likely continuations are, without ever giving the logits of all of them at once."""

    @property
    def identity(self) -> dict[str, str]:
        """All that determines its numbers, beside checkpoint, state and tokens; keys and values are stable."""
        ...

    @property
    def description(self) -> str:
        """One line for a person: what computes, on what."""
        ...

    @property
    def batch(self) -> int:
        """How many texts it is worth giving at once."""
        ...

    def score(self, texts: Sequence[Text], state: StateArrays | None = None) -> list[Score]:
        """Score the continuation of each text after its prompt, every one from *state* (None: the zero state)."""
        ...
