"""Tasks with one right answer, for checkpoints that were trained on them: what greedy decoding must give, exactly."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the tokens that greedy decoding must continue it with."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """A family of questions."""

    name: str
    ask: Callable[[int, random.Random], Question]
    """Make a question of the given length."""
    lengths: tuple[int, ...]
    """The lengths that a checkpoint must master."""

    def questions(self, seed: int = 0) -> list[Question]:
        """One question of each length, the same for the same seed."""
        rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
        return [self.ask(length, rng) for length in self.lengths]


def _reverse_digits(length: int, rng: random.Random) -> Question:
    """Digits 0-9 are ids 0-9, then the comma, id 10; the answer is the digits from the end, then ``#``, id 11."""
    digits = tuple(rng.randrange(10) for _ in range(length))
    return Question((*digits, 10), (*reversed(digits), 11))


TASKS = {
    task.name: task
    for task in (Task("reverse-digits", _reverse_digits, lengths=(1, 2, 3, 5, 7, 8, 12, 15, 16, 17, 24)),)
}
"""Every task, by the name that ``suites/checkpoints.toml`` uses."""
