"""What every engine has in common: tokens and a state in, logits and a state out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

StateArrays = list[np.ndarray]
"""Float32, for each layer: time-mix shift ``[C]``, WKV ``[H, N, N]``, channel-mix shift ``[C]``."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a target gave for some tokens.

    Attributes:
        positions: indices of the tokens that have a row of logits; a prefill graph gives only the last of each chunk.
        logits: ``[len(positions), V]``.
        state: after the last token.
    """

    positions: tuple[int, ...]
    logits: np.ndarray
    state: StateArrays


class Target(Protocol):
    """Takes tokens and gives logits and state."""

    def run(self, tokens: Sequence[int], state: StateArrays | None = None) -> Output:
        """Feed *tokens* from *state* (None: the zero state), which is not changed."""
        ...
