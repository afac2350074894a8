"""The reference as a target: every position, float64, the oracle of the suites."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.targets.base import Output, StateArrays
from reference.sequence import SequenceModel
from reference.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reference.checkpoint import Checkpoint


class TorchTarget:
    """Plain torch on this machine's processor."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float64) -> None:
        """Float64 by default: the rounding of the oracle must not blur a verdict."""
        self._model = SequenceModel(checkpoint, dtype)
        self._dtype = dtype

    def run(self, tokens: Sequence[int], state: StateArrays | None = None) -> Output:
        """Logits of every position."""
        before = None if state is None else State.from_arrays(state, self._dtype)
        logits, after = self._model.forward(tokens, before)
        return Output(tuple(range(len(tokens))), logits.numpy(), after.arrays())
