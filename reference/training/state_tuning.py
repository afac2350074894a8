"""An initial state as the thing that is trained, under weights that stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from reference.state import State

if TYPE_CHECKING:
    from torch import Tensor

    from reference.training.model import Trainable


class TunedState(nn.Module):
    """A model whose rows all begin from the same learned state.

    State tuning as the RWKV project does it: the WKV matrices before the first token are parameters, of zeros at
    first; the token shifts are zeros, or parameters too.
    """

    def __init__(self, model: Trainable, *, shifts: bool = False) -> None:
        """Freeze the model.

        Args:
            model: of which nothing is changed.
            shifts: learn what stands before the first token in the token shifts, too.
        """
        super().__init__()
        zeros = State.zeros(model.shape, torch.float32)
        self.model = model.requires_grad_(requires_grad=False)
        self.wkv = nn.Parameter(zeros.wkv)
        self.att_shift = nn.Parameter(zeros.att_shift, requires_grad=shifts)
        self.ffn_shift = nn.Parameter(zeros.ffn_shift, requires_grad=shifts)

    def trained(self) -> list[tuple[str, Tensor]]:
        """Names and parameters of what is learned."""
        mine = (("wkv", self.wkv), ("att_shift", self.att_shift), ("ffn_shift", self.ffn_shift))
        return [(name, parameter) for name, parameter in mine if parameter.requires_grad]

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[B, T, V]`` after each of the tokens ``[B, T]``, every row from the learned state."""
        logits: Tensor = self.model(tokens, (self.att_shift, self.wkv, self.ffn_shift))
        return logits

    def state(self) -> State:
        """What was learned."""
        return State(self.att_shift.detach().cpu(), self.wkv.detach().cpu(), self.ffn_shift.detach().cpu())
