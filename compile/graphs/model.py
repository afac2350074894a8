"""The layers around time-mix, and the whole model: one call takes T tokens and every state, gives both back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from compile.dims import Dims
from compile.graphs.layers import LAYER_NORM_EPS, LayerNorm, Linear, Mix, TokenShift
from compile.graphs.named import Named
from compile.graphs.time_mix import TimeMix

if TYPE_CHECKING:
    from compile.dims import Arrays


_ROWS = 4096  # of the embedding at a time: a table of the largest models takes gigabytes in float64


class ChannelMix(nn.Module):
    """Token shift, then a two-layer perceptron with squared ReLU."""

    def __init__(self, arrays: Arrays, i: int) -> None:
        """Layer i."""
        super().__init__()
        ffn = f"blocks.{i}.ffn."
        self.mix = Mix(arrays, [ffn + "x_k"])
        self.key = Linear(arrays, ffn + "key")
        self.value = Linear(arrays, ffn + "value")
        self.token_shift = TokenShift()
        self.hidden = Named()

    def forward(self, x: Tensor, prev: Tensor) -> tuple[Tensor, Tensor]:
        """X ``[1, T, C]``, prev ``[1, 1, C]`` -> output, next prev."""
        delta, shift = self.token_shift(x, prev)
        key = self.key(self.mix(x, delta))
        return self.value(self.hidden(self.activation(key))), shift

    def activation(self, key: Tensor) -> Tensor:
        """Squared ReLU."""
        positive = torch.relu(key)
        return positive * positive


class Block(nn.Module):
    """One layer: both mixes, each on its layer norm, each added to the residual stream."""

    time_mix: type[TimeMix] = TimeMix
    channel_mix: type[ChannelMix] = ChannelMix

    def __init__(self, arrays: Arrays, i: int, T: int, *, weight_group: int = 1) -> None:
        """Layer i of a graph that takes T tokens a call; for *weight_group* see :class:`Rwkv7`."""
        super().__init__()
        self.ln1 = LayerNorm(arrays, f"blocks.{i}.ln1")
        self.ln2 = LayerNorm(arrays, f"blocks.{i}.ln2")
        self.att = self.time_mix(arrays, i, T, weight_group=weight_group)
        self.ffn = self.channel_mix(arrays, i)
        self.out = Named()

    @property
    def v_first_shape(self) -> tuple[int, ...]:
        """Of the first layer's values, as layers pass them on."""
        return self.att.v_first_shape

    def forward(
        self, x: Tensor, att_shift: Tensor, S: Tensor, ffn_shift: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """X ``[1, T, C]`` and the layer's three states -> x, the three next states, v_first."""
        y, att_shift, S, v_first = self.att(self.ln1(x), att_shift, S, v_first)
        x = x + y
        y, ffn_shift = self.ffn(self.ln2(x), ffn_shift)
        return self.out(x + y), [att_shift, S, ffn_shift], v_first


def embedding(arrays: Arrays, dtype: torch.dtype) -> nn.Parameter:
    """The table ``[V, C]``: its layer norm depends on the token alone, and is applied here, once, in float64."""
    rows = torch.from_numpy(arrays["emb.weight"])
    weight, bias = (torch.from_numpy(arrays[f"blocks.0.ln0.{part}"]).double() for part in ("weight", "bias"))
    table = torch.empty(rows.shape, dtype=dtype)
    for some, place in zip(torch.split(rows, _ROWS), torch.split(table, _ROWS), strict=True):
        place.copy_(layer_norm(some.double(), weight.shape, weight, bias, LAYER_NORM_EPS))
    return nn.Parameter(table, requires_grad=False)


class Rwkv7(nn.Module):
    """The whole model for T tokens a call; ``every_position`` decides between T rows of logits and the last one.

    ``weight_group`` is the number of a matrix's inputs that share a step where weights are quantised: the ranks of LoRA
    pairs are filled up to a multiple of it with zeros, without which those matrices would stay F16.
    """

    block: type[Block] = Block

    def __init__(self, arrays: Arrays, *, T: int, every_position: bool, weight_group: int = 1) -> None:
        """Build from arrays by BlinkDL's names; sizes are read from them."""
        super().__init__()
        self.dims = Dims.of(arrays)
        self.T = T
        self.every_position = every_position
        self.emb = embedding(arrays, torch.float64)
        self.blocks = nn.ModuleList(self.block(arrays, i, T, weight_group=weight_group) for i in range(self.dims.L))
        self.ln_out = LayerNorm(arrays, "ln_out")
        self.head = Linear(arrays, "head")

    def forward(self, token: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Token ids ``[1, T]`` and 3 L states -> logits ``[1, T or 1, V]`` and the 3 L next states."""
        x = self.emb[token]
        v_first = None
        next_states: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x, new, v_first = block(x, *states[3 * i : 3 * i + 3], v_first)
            next_states += new
        if not self.every_position:
            x = x[:, -1:]
        return self.head(self.ln_out(x)), *next_states

    def example_inputs(self) -> dict[str, Tensor]:
        """Zeros for ``token`` and the states, in the order of :meth:`forward`, by their names in ONNX."""
        states = {name: torch.zeros(shape) for name, shape in self.dims.state_shapes()}
        return {"token": torch.zeros(1, self.T, dtype=torch.int32), **states}

    def output_names(self) -> list[str]:
        """``logits`` and the next states."""
        return ["logits", *(f"{name}.next" for name, _ in self.dims.state_shapes())]
