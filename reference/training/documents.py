"""What a model is trained on: documents, and the rows of tokens that a batch is made of.

A batch is a function of the seed and the number of its step alone: a training that was killed goes on with exactly the
tokens that it would have had.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

END_OF_TEXT = 0
"""The id that separates documents, as in the World vocabulary."""


class DocumentError(ValueError):
    """Nothing to learn from: says what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Row:
    """Consecutive tokens, and which of them are to be predicted from those before."""

    tokens: tuple[int, ...]
    learned: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of T tokens to feed and to predict.

    Attributes:
        fed: ``[B, T]`` int64.
        wanted: ``[B, T]`` int64: the token behind each of those fed.
        learned: ``[B, T]`` bool: whether it counts in the loss.
    """

    fed: Tensor
    wanted: Tensor
    learned: Tensor


class Source(Protocol):
    """Where rows come from."""

    def row(self, length: int, rng: random.Random) -> Row:
        """Draw a row of at most *length* tokens."""


class Texts:
    """Documents that are learned token by token: rows are windows of all of them, one behind the other."""

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        """Put the end of text before each document.

        Raises:
            DocumentError: there is no token in them.
        """
        self._stream = [token for tokens in documents if tokens for token in (END_OF_TEXT, *tokens)]
        if not self._stream:
            raise DocumentError("the documents hold no tokens, but at least one is needed to learn from")

    def row(self, length: int, rng: random.Random) -> Row:
        """A window that begins anywhere; shorter than *length* only where all the documents are."""
        start = rng.randrange(max(1, len(self._stream) - length + 1))
        tokens = tuple(self._stream[start : start + length])
        return Row(tokens, (True,) * len(tokens))


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and the continuation that is to be learned."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Questions:
    """Prompts with answers, of which only the answers are learned."""

    def __init__(self, draw: Callable[[random.Random], Question], *, packed: bool = True) -> None:
        """Take a function that draws a question.

        Args:
            draw: makes a question from a random stream.
            packed: rows hold as many questions as fit, each behind an end of text. Otherwise a row is one question
                that follows the initial state directly, as state tuning needs it.
        """
        self._draw = draw
        self._packed = packed

    def row(self, length: int, rng: random.Random) -> Row:
        """Whole questions; of the last one as much as fits."""
        tokens: list[int] = []
        learned: list[bool] = []
        while len(tokens) < length:
            question = self._draw(rng)
            before = (END_OF_TEXT, *question.prompt) if self._packed else question.prompt
            tokens += (*before, *question.answer)
            learned += [False] * len(before) + [True] * len(question.answer)
            if not self._packed:
                break
        return Row(tuple(tokens[:length]), tuple(learned[:length]))


@dataclass(frozen=True, slots=True)
class Mixture:
    """Several sources, each with its share of the rows."""

    sources: tuple[Source, ...]
    shares: tuple[float, ...]

    def batch(self, step: int, *, rows: int, length: int, seed: int) -> Batch:
        """Make the batch of a step: *rows* rows of *length* tokens to feed; equal arguments give equal tokens.

        Rows that are shorter are filled up behind their end, where nothing is learned any more.
        """
        rng = random.Random(f"{seed} {step}")  # noqa: S311 - reproducible, not secret
        drawn = [
            rng.choices(self.sources, cum_weights=list(accumulate(self.shares)))[0].row(length + 1, rng)
            for _ in range(rows)
        ]
        width = max(len(row.tokens) for row in drawn)
        tokens = torch.tensor([(*row.tokens, *[END_OF_TEXT] * (width - len(row.tokens))) for row in drawn])
        learned = torch.tensor([(*row.learned, *[False] * (width - len(row.tokens))) for row in drawn])
        return Batch(tokens[:, :-1], tokens[:, 1:], learned[:, 1:])
