"""Tasks with one right answer, for checkpoints that were trained on them: what greedy decoding must give, exactly."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reference.training.documents import END_OF_TEXT
from reference.training.tasks import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenizer.codec import Codec

REVERSE_IDS = "reverse-ids"
"""Reversal by a checkpoint without text: digits 0-9 are ids 0-9, the comma is id 10, ``#``, the end, is id 11."""

NAMES = (REVERSE_IDS, *(kind.value for kind in Kind))
"""Every task, by the name that ``suites/checkpoints.toml`` uses."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the tokens that greedy decoding must continue it with."""

    task: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def questions(
    lengths: Mapping[str, Sequence[int]], codec: Codec, *, behind_state: bool = False, seed: int = 0
) -> tuple[Question, ...]:
    """Ask a question of each length, the same for the same seed.

    Args:
        lengths: by task.
        codec: of the checkpoint.
        behind_state: the prompts follow a tuned state directly. Otherwise an end of text stands before each, as before
            every document in training.
        seed: of the digits and letters.
    """
    asked = []
    for name, of_task in lengths.items():
        rng = random.Random(f"asked {name} {seed}")  # noqa: S311 - reproducible, not secret
        for length in of_task:
            if name == REVERSE_IDS:
                drawn = tuple(rng.randrange(10) for _ in range(length))
                asked.append(Question(name, (*drawn, 10), (*reversed(drawn), 11)))
                continue
            exercise = Kind(name).exercise(length, rng)
            before = () if behind_state else (END_OF_TEXT,)
            prompt, answer = codec.encode(exercise.prompt), codec.encode(exercise.answer)
            asked.append(Question(name, (*before, *prompt), tuple(answer)))
    return tuple(asked)
