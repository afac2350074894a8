"""AdamW with RWKV-7's groups, and the learning rate over time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        steps: batches in all.
        rate: the highest learning rate.
        final: the share of it that is left at the end.
        warm_up: steps over which it rises from nearly nothing.
        weight_decay: of the matrices.
        clip: the largest norm of a step's gradient.
    """

    steps: int
    rate: float
    final: float = 0.05
    warm_up: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0

    def at(self, step: int) -> float:
        """Return the learning rate of a step: a linear warm-up, then half a cosine down to the final share."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.rate * (self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2)


def optimizer(named: Iterable[tuple[str, Tensor]], schedule: Schedule) -> torch.optim.AdamW:
    """AdamW over named parameters, by BlinkDL's names.

    Matrices decay. Vectors, LoRA pairs, ``r_k`` and the embedding do not, and the decay's bias ``w0`` learns twice as
    fast. Source: BlinkDL/RWKV-LM, ``RWKV-v7/train_temp/src/model.py``, configure_optimizers.
    """
    groups: dict[str, list[Tensor]] = {"matrices": [], "decay bias": [], "rest": []}
    for name, parameter in named:
        if name.endswith(".att.w0"):
            groups["decay bias"].append(parameter)
        elif parameter.dim() == 2 and name.endswith(".weight") and name != "emb.weight":
            groups["matrices"].append(parameter)
        else:
            groups["rest"].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": schedule.weight_decay if kind == "matrices" else 0.0,
                "rate_factor": 2.0 if kind == "decay bias" else 1.0,
            }
            for kind, parameters in groups.items()
            if parameters
        ],
        lr=schedule.rate,
        betas=(0.9, 0.99),
        eps=1e-18,  # gradients of the smallest parameters lie far below the usual 1e-8
    )
