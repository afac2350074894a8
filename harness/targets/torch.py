"""The references as targets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import torch

from harness.targets.base import Output, Score, StateArrays
from reference.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.targets.base import Text
    from reference.fast import Fast
    from reference.naive import Naive


class ReferenceTarget:
    """A reference model: every position, on this machine's processor or a CUDA device."""

    def __init__(self, model: Fast | Naive, emulated: Callable[[], Fast] | None = None) -> None:
        """Take a model; its dtype is that of the results.

        *emulated* makes the model that rounds as the precision does that is to be judged, where there is one.
        """
        self._model = model
        self._emulated = emulated and cache(emulated)

    def run(self, tokens: Sequence[int], state: StateArrays | None = None) -> Output:
        """Logits of every position."""
        logits, after = self._model.forward(tokens, _state(state))
        emulated = None if self._emulated is None else cache(partial(_run, self._emulated, tuple(tokens), state))
        return Output(tuple(range(len(tokens))), logits.numpy(), after.arrays(), emulated)


def _run(model: Callable[[], Fast], tokens: Sequence[int], state: StateArrays | None) -> Output:
    return ReferenceTarget(model()).run(tokens, state)


def _state(arrays: StateArrays | None) -> State | None:
    return None if arrays is None else State.from_arrays(arrays, torch.float64)


@dataclass(frozen=True, slots=True)
class FastScorer:
    """A batched reference: many texts at once."""

    model: Fast
    identity: dict[str, str]
    description: str
    batch: int = 100

    def score(self, texts: Sequence[Text], state: StateArrays | None = None) -> list[Score]:
        """Score each text; see :class:`harness.targets.base.Scorer`."""
        before = None if state is None else State.from_arrays(state, torch.float64)
        return [Score(one.log_probs.numpy(), one.is_top.numpy()) for one in self.model.score(texts, before)]
