"""The references as targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.targets.base import Output, Score, StateArrays
from reference.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.targets.base import Text
    from reference.fast import Fast
    from reference.naive import Naive


class ReferenceTarget:
    """A reference model: every position, on this machine's processor or a CUDA device."""

    def __init__(self, model: Fast | Naive) -> None:
        """Take a model; its dtype is that of the results."""
        self._model = model

    def run(self, tokens: Sequence[int], state: StateArrays | None = None) -> Output:
        """Logits of every position."""
        before = None if state is None else State.from_arrays(state, torch.float64)
        logits, after = self._model.forward(tokens, before)
        return Output(tuple(range(len(tokens))), logits.numpy(), after.arrays())


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
