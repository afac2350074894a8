"""Generated exercises with one right answer, as text: what a small model can learn completely, and lose by a fault.

Each needs another ability of the state: to read a sequence back in order or from its end, to look a value up by its
key, to count. The digits and letters are drawn anew for every exercise, so that nothing can be learned by heart.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from string import ascii_lowercase, digits
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

END = "\n"
"""Ends every answer."""


@dataclass(frozen=True, slots=True)
class Exercise:
    """A prompt, and what greedy decoding must continue it with."""

    prompt: str
    answer: str


class Kind(Enum):
    """The kinds of exercise, by the word that begins the prompt."""

    REVERSE = "reverse"
    """``reverse 4821=`` → ``1284``: digits from the end."""

    COPY = "copy"
    """``copy kqwz=`` → ``kqwz``: letters in order."""

    RECALL = "recall"
    """``recall k3 f7 a1 f=`` → ``7``: the digit behind the letter asked for; letters do not repeat."""

    SORT = "sort"
    """``sort 4821=`` → ``1248``: digits from the least."""

    BARE_REVERSE = "bare-reverse"
    """``4821=`` → ``1284``: reversal without the word. The shipped model never saw it; its tuned state supplies it."""

    def exercise(self, length: int, rng: random.Random) -> Exercise:
        """Draw an exercise of *length* digits, letters or pairs, at least 1 (pairs: at most 26)."""
        match self:
            case Kind.COPY:
                text = "".join(rng.choices(ascii_lowercase, k=length))
                return Exercise(f"copy {text}=", text + END)
            case Kind.RECALL:
                pairs = {key: rng.choice(digits) for key in rng.sample(ascii_lowercase, length)}
                asked = rng.choice(list(pairs))
                listed = " ".join(key + value for key, value in pairs.items())
                return Exercise(f"recall {listed} {asked}=", pairs[asked] + END)
        text = "".join(rng.choices(digits, k=length))
        match self:
            case Kind.SORT:
                return Exercise(f"sort {text}=", "".join(sorted(text)) + END)
            case Kind.REVERSE:
                return Exercise(f"reverse {text}=", text[::-1] + END)
            case Kind.BARE_REVERSE:
                return Exercise(f"{text}=", text[::-1] + END)
