"""Choosing an engine by name, for everything that scores texts."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.metrics import log_softmax
from harness.targets.base import Score
from harness.targets.torch import FastScorer, ReferenceTarget
from reference.naive import Naive

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from harness.checkpoints import Model
    from harness.targets.base import Scorer, StateArrays, Target, Text


class ScorerError(ValueError):
    """A target that does not exist or cannot be had; says which can."""


@dataclass(frozen=True, slots=True)
class EveryPosition:
    """Scores one text after the other with a target that gives logits at every position."""

    target: Target
    identity: dict[str, str]
    description: str
    batch: int = 1

    def score(self, texts: Sequence[Text], state: StateArrays | None = None) -> list[Score]:
        """Score each text; see :class:`harness.targets.base.Scorer`."""
        scores = []
        for prompt, continuation in texts:
            logits = self.target.run([*prompt, *continuation[:-1]], state).logits[-len(continuation) :]
            scores.append(judge(logits, continuation))
        return scores


def judge(logits: np.ndarray, continuation: Sequence[int]) -> Score:
    """Score tokens against the logits ``[n, V]`` of the positions before them."""
    rows = np.arange(len(continuation))
    return Score(log_softmax(logits)[rows, list(continuation)], logits.argmax(axis=-1) == np.asarray(continuation))


@contextmanager
def open_scorer(name: str, model: Model) -> Generator[Scorer]:
    """Open the target of that name for a checkpoint.

    Raises:
        ScorerError: there is no such target.
    """
    if name == "naive":
        yield EveryPosition(ReferenceTarget(Naive(model.checkpoint)), {"target": name}, "naive recurrence, float64")
    elif name == "torch":
        yield FastScorer(model.checkpoint, torch.float32, name)
    else:
        raise ScorerError(f"no target {name!r}; there are naive, torch")
