"""The layers around the recurrence, and the whole model: one call takes T tokens and every state, gives both back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from compile.dims import Dims
from compile.graphs.named import Named
from compile.graphs.wkv import WkvChunks, WkvStep

if TYPE_CHECKING:
    from compile.dims import Arrays

_LAYER_NORM_EPS = 1e-5
_GROUP_NORM_EPS = 64e-5
_KEY_NORM_SQUARED_FLOOR = 6e-8  # the smallest float16: the formula's 1e-24 would be flushed to a division by zero


class LayerNorm(nn.Module):
    """Normalise the last axis, then scale and shift."""

    def __init__(self, arrays: Arrays, name: str) -> None:
        """Takes ``name.weight`` and ``name.bias``, both ``[C]``."""
        super().__init__()
        self.weight = _constant(arrays[name + ".weight"])
        self.bias = _constant(arrays[name + ".bias"])
        self.normed = Named(f32=True)

    def forward(self, x: Tensor) -> Tensor:
        """Any ``[..., C]``."""
        y: Tensor = self.normed(layer_norm(x, self.weight.shape, self.weight, self.bias, _LAYER_NORM_EPS))
        return y


class LowRank(nn.Module):
    """A LoRA pair with an activation between its halves: f(x A) B (+ bias)."""

    def __init__(self, arrays: Arrays, name: str, *, bias: bool = True) -> None:
        """Takes ``name1 [C, rank]``, ``name2 [rank, C]`` and, if wanted, ``name0 [C]``."""
        super().__init__()
        self.down = _constant(arrays[name + "1"])
        self.up = _constant(arrays[name + "2"])
        self.bias = _constant(arrays[name + "0"]) if bias else None

    def forward(self, x: Tensor, inner: nn.Module) -> Tensor:
        """X ``[1, T, C]`` -> ``[1, T, C]``."""
        y: Tensor = inner(x @ self.down) @ self.up
        return y if self.bias is None else y + self.bias


class Linear(nn.Module):
    """A matrix product without bias; the matrix is stored transposed, as the compiler wants it."""

    def __init__(self, arrays: Arrays, name: str) -> None:
        """Takes ``name.weight [out, in]``."""
        super().__init__()
        self.weight = _constant(arrays[name + ".weight"].T)

    def forward(self, x: Tensor) -> Tensor:
        """X ``[1, T, in]`` -> ``[1, T, out]``."""
        return x @ self.weight


class TokenShift(nn.Module):
    """What each token is mixed with: the difference to the one before; and what the next call begins with."""

    def __init__(self) -> None:
        """In float32, see :class:`Mix`."""
        super().__init__()
        self.rest, self.before, self.delta, self.last = (Named(f32=True) for _ in range(4))

    def forward(self, x: Tensor, prev: Tensor) -> tuple[Tensor, Tensor]:
        """X ``[1, T, C]``, prev ``[1, 1, C]`` -> the token before minus x ``[1, T, C]``, the last x ``[1, 1, C]``."""
        if x.shape[1] == 1:
            return self.delta(prev - x), x
        before = self.before(torch.cat([prev, self.rest(x[:, :-1])], dim=1))
        return self.delta(before - x), self.last(x[:, -1:])


class Mix(nn.Module):
    """Mix each token with the one before: x + (before - x) mu.

    In float32, on what the layer norm gives in float32: trained weights mu reach 9, and then three roundings to float16
    of terms that nearly cancel cost more accuracy than all else in the layer. Measured on a trained checkpoint (2
    layers, C = 256), 64 decode steps: state NMSE 1.0e-5 with the mix in float16, 5.2e-6 in float32, for 0.5 % fewer
    cycles, because no cast is left between the two.
    """

    def __init__(self, arrays: Arrays, name: str) -> None:
        """Takes *name* ``[C]``."""
        super().__init__()
        self.mu = _constant(arrays[name])
        self.scaled, self.mixed = Named(f32=True), Named(f32=True)

    def forward(self, x: Tensor, delta: Tensor) -> Tensor:
        """X and delta = prev - x, both ``[1, T, C]``."""
        y: Tensor = self.mixed(x + self.scaled(delta * self.mu))
        return y


class TimeMix(nn.Module):
    """Token shift, projections, the WKV recurrence, per-head group norm, bonus, gate."""

    def __init__(self, arrays: Arrays, i: int, T: int) -> None:
        """Layer i of a graph that takes T tokens a call."""
        super().__init__()
        dims = Dims.of(arrays)
        att = f"blocks.{i}.att."
        self.T, self.H, self.N = T, dims.H, dims.N
        self.mix = nn.ModuleDict({f"x_{q}": Mix(arrays, f"{att}x_{q}") for q in "rwkvag"})
        self.receptance = Linear(arrays, att + "receptance")
        self.key = Linear(arrays, att + "key")
        self.value = Linear(arrays, att + "value")
        self.output = Linear(arrays, att + "output")
        self.decay_lora = LowRank(arrays, att + "w")
        self.rate_lora = LowRank(arrays, att + "a")
        self.gate_lora = LowRank(arrays, att + "g", bias=False)
        self.value_lora = LowRank(arrays, att + "v") if i > 0 else None
        self.k_k = _constant(arrays[att + "k_k"])
        self.k_a = _constant(arrays[att + "k_a"])
        self.r_k = _constant(arrays[att + "r_k"].reshape(-1, 1, self.N))
        self.ln_x_weight = _constant(arrays[att + "ln_x.weight"])
        self.ln_x_bias = _constant(arrays[att + "ln_x.bias"])
        self.recurrence = WkvStep(self.N) if T == 1 else WkvChunks(T)
        self.r, self.k, self.v, self.log_w, self.rate, self.gate, self.kappa, self.wkv = (Named() for _ in range(8))
        self.token_shift = TokenShift()

    def forward(
        self, x: Tensor, prev: Tensor, S: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X ``[1, T, C]``, prev ``[1, 1, C]``, S ``[H, N, N]`` -> output, next prev, next S, v_first."""
        delta, shift = self.token_shift(x, prev)
        x_r, x_w, x_k, x_v, x_a, x_g = (self.mix[f"x_{q}"](x, delta) for q in "rwkvag")
        r = self.r(self.receptance(x_r))
        k = self.key(x_k)
        v = self.value(x_v)
        log_w = self.log_w(self.log_decay(self.decay_lora(x_w, nn.Tanh())))
        rate = self.rate(torch.sigmoid(self.rate_lora(x_a, nn.Identity())))
        gate = self.gate(self.gate_lora(x_g, nn.Sigmoid()))
        if self.value_lora is None or v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.value_lora(x_v, nn.Identity()))
        v = self.v(v)

        kappa = self.heads(k * self.k_k)
        norm_squared = torch.clamp((kappa * kappa).sum(dim=2, keepdim=True), min=_KEY_NORM_SQUARED_FLOOR)
        kappa = self.kappa(kappa / torch.sqrt(norm_squared))
        k = self.k(k * (1 + (rate - 1) * self.k_a))

        r, log_w, k, v, rate = (self.heads(q) for q in (r, log_w, k, v, rate))
        y, S = self.recurrence(r, log_w, k, v, -kappa, kappa * rate, S)
        y = self.group_norm(self.wkv(y))
        bonus = (r * k * self.r_k).sum(dim=2, keepdim=True) * v
        y = self.joined(y) * self.ln_x_weight + self.ln_x_bias + self.joined(bonus)
        return self.output(y * gate), shift, S, v_first

    def log_decay(self, d: Tensor) -> Tensor:
        """The decay's logarithm: w = exp(-e^(-1/2) sigmoid(d))."""
        return torch.sigmoid(d) * -math.exp(-0.5)

    def group_norm(self, y: Tensor) -> Tensor:
        """Per head, without the affine: that is applied once the heads are joined again."""
        return layer_norm(y, (self.N,), eps=_GROUP_NORM_EPS)

    def heads(self, x: Tensor) -> Tensor:
        """``[1, T, C]`` -> ``[H, T, N]``; for one token no data moves."""
        if self.T == 1:
            return x.reshape(self.H, 1, self.N)
        return x.reshape(1, self.T, self.H, self.N).permute(0, 2, 1, 3).reshape(self.H, self.T, self.N)

    def joined(self, x: Tensor) -> Tensor:
        """``[H, T, N]`` -> ``[1, T, C]``."""
        if self.T == 1:
            return x.reshape(1, 1, self.H * self.N)
        return x.reshape(1, self.H, self.T, self.N).permute(0, 2, 1, 3).reshape(1, self.T, self.H * self.N)


class ChannelMix(nn.Module):
    """Token shift, then a two-layer perceptron with squared ReLU."""

    def __init__(self, arrays: Arrays, i: int) -> None:
        """Layer i."""
        super().__init__()
        ffn = f"blocks.{i}.ffn."
        self.mix = Mix(arrays, ffn + "x_k")
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

    def __init__(self, arrays: Arrays, i: int, T: int) -> None:
        """Layer i of a graph that takes T tokens a call."""
        super().__init__()
        self.ln1 = LayerNorm(arrays, f"blocks.{i}.ln1")
        self.ln2 = LayerNorm(arrays, f"blocks.{i}.ln2")
        self.att = self.time_mix(arrays, i, T)
        self.ffn = self.channel_mix(arrays, i)
        self.out = Named()

    def forward(
        self, x: Tensor, att_shift: Tensor, S: Tensor, ffn_shift: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """X ``[1, T, C]`` and the layer's three states -> x, the three next states, v_first."""
        y, att_shift, S, v_first = self.att(self.ln1(x), att_shift, S, v_first)
        x = x + y
        y, ffn_shift = self.ffn(self.ln2(x), ffn_shift)
        return self.out(x + y), [att_shift, S, ffn_shift], v_first


class Rwkv7(nn.Module):
    """The whole model for T tokens a call; ``every_position`` decides between T rows of logits and the last one."""

    block: type[Block] = Block

    def __init__(self, arrays: Arrays, *, T: int, every_position: bool) -> None:
        """Build from arrays by BlinkDL's names; sizes are read from them."""
        super().__init__()
        self.dims = Dims.of(arrays)
        self.T = T
        self.every_position = every_position
        # The layer norm of the embedding depends on the token alone: it is applied to the table, once, in float64.
        table = torch.from_numpy(arrays["emb.weight"]).double()
        weight, bias = (torch.from_numpy(arrays[f"blocks.0.ln0.{part}"]).double() for part in ("weight", "bias"))
        table = layer_norm(table, weight.shape, weight, bias, _LAYER_NORM_EPS)
        self.emb = nn.Parameter(table, requires_grad=False)
        self.blocks = nn.ModuleList(self.block(arrays, i, T) for i in range(self.dims.L))
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


def _constant(array: object) -> nn.Parameter:
    return nn.Parameter(torch.tensor(array, dtype=torch.float32), requires_grad=False)
