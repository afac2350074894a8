"""How much is measured: a board gets enough for quantiles, the simulator as little as proves that the code runs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

BOARD_DEPTHS = (0, 512, 2048, 8192)
BOARD_REPEATS = 10
_BOARD_STEPS = 32
_BOARD_PROMPT = 512
_SIMULATOR_REPEATS = 2
_SIMULATOR_STEPS = 2
_TAIL = 1  # no multiple of a chunk: the way through both kinds of net is what a user takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run measures of each case.

    Attributes:
        depths: tokens that a session has behind it where a window of decode steps begins.
        repeats: of each window, chunk and prompt.
        steps: of a window of decode; also the output tokens of a prompt.
        prompt: whole chunks aside, tokens of a prompt at least.
    """

    depths: tuple[int, ...]
    repeats: int
    steps: int
    prompt: int

    def prompt_tokens(self, T: int) -> int:
        """Tokens of a prompt for chunks of *T*: at least one chunk, and a tail."""
        return max(self.prompt, T) + _TAIL


def plan_for(*, simulated: bool, longest: int, depths: tuple[int, ...] | None, repeats: int | None) -> Plan:
    """Make the plan of a run; *depths* and *repeats* are what its user asked for, *longest* the longest chunk."""
    if simulated:
        return Plan(
            depths=depths or (0, longest), repeats=repeats or _SIMULATOR_REPEATS, steps=_SIMULATOR_STEPS, prompt=0
        )
    return Plan(
        depths=depths or BOARD_DEPTHS, repeats=repeats or BOARD_REPEATS, steps=_BOARD_STEPS, prompt=_BOARD_PROMPT
    )


def token_ids(vocabulary: int, count: int) -> list[int]:
    """Make *count* ids drawn uniformly, always the same: what comes next is known before anything is measured."""
    return [int(token) for token in np.random.default_rng(20).integers(0, vocabulary, count)]


def parse_depths(text: str) -> tuple[int, ...]:
    """Read the option ``--depths``, such as ``0,512``.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: should be numbers of tokens with commas between, such as 0,512")
    return tuple(sorted({int(part) for part in parts}))


def parse_repeats(text: str) -> int:
    """Read the option ``--repeats``.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r}: should be a number, at least 1")
    return int(text)
