"""What storing numbers in fewer bits keeps of them: for finding out how sensitive a model is to it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import torch

from reference.fast import Fast
from reference.wkv import wkv_step

if TYPE_CHECKING:
    from torch import Tensor

    from reference.checkpoint import Checkpoint
    from reference.fast import Batch


class NumberFormat(Enum):
    """How a number is stored."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    """Whole numbers from -127 to 127, times a step that all numbers along the last axis share."""

    def keep(self, x: Tensor) -> Tensor:
        """Round a float32 tensor to what is stored, to nearest; given back as float32."""
        match self:
            case NumberFormat.FP32:
                return x
            case NumberFormat.FP16:
                return x.half().float()
            case NumberFormat.BF16:
                return x.bfloat16().float()
            case NumberFormat.INT8:
                step = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127
                return (x / step).round() * step

    def keep_matrices(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Round the matrices ``[out, in]``, LoRA pairs and the embedding of a checkpoint; vectors stay as they are."""
        return {name: self.keep(x) if x.dim() == 2 and not name.endswith("r_k") else x for name, x in tensors.items()}


class RoundedState(Fast):
    """The reference in float32, with its state stored in another format after every token.

    Written with the plain recurrence: a chunk of the fast one never stores the states between its tokens.
    """

    def __init__(self, checkpoint: Checkpoint, state: NumberFormat) -> None:
        """Prepare the weights; *state* is how all three kinds of state are stored."""
        super().__init__(checkpoint, torch.float32)
        self._format = state

    def _wkv(
        self,
        r: Tensor,
        log_w: Tensor,
        k: Tensor,
        v: Tensor,
        kappa: Tensor,
        a: Tensor,
        S: Tensor,
        batch: Batch,
    ) -> tuple[Tensor, Tensor]:
        lengths = batch.last - batch.first + 1
        y, S = torch.empty_like(r), self._format.keep(S)
        for t in range(int(lengths.max())):
            running = (lengths > t).nonzero()[:, 0]
            rows = batch.first[running] + t
            y[rows], after = wkv_step(r[rows], log_w[rows], k[rows], v[rows], kappa[rows], a[rows], S[running])
            S[running] = self._format.keep(after)
        return y, S

    def _shift(self, x: Tensor, before: Tensor, batch: Batch) -> tuple[tuple[Tensor, Tensor], Tensor]:
        stored = self._format.keep(x)
        delta = torch.empty_like(x)
        delta[1:] = stored[:-1] - x[1:]
        delta[batch.first] = self._format.keep(before) - x[batch.first]
        return (x, delta), stored[batch.last]
