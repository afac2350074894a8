"""Time-mix: projections of the mixed tokens, then per head the removal key, the recurrence, group norm and bonus.

What lies between a projection and the recurrence crosses from rows of C to heads of N, through the chip's outer memory.
For one token that is free, and everything after the projections works on heads. For T tokens a crossing costs 6 us in
each layer for each 64 tokens, so what need not cross does not: the value residual and the gate stay with the rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from compile.dims import Dims
from compile.graphs.layers import Linear, Mix, TokenShift, constant
from compile.graphs.lora import LowRank, LowRanks
from compile.graphs.named import Named
from compile.graphs.wkv import WkvChunks, WkvStep

if TYPE_CHECKING:
    from compile.dims import Arrays

_GROUP_NORM_EPS = 64e-5
_KEY_NORM_SQUARED_FLOOR = 6e-8  # the smallest float16: the formula's 1e-24 would be flushed to a division by zero


class Projected(NamedTuple):
    """What comes out of the projections."""

    r: Tensor  # [H, T, N]
    decay: Tensor  # [H, T, N]; for one token w itself, otherwise log w
    k: Tensor  # [H, T, N]
    v: Tensor  # [H, T, N]
    rate: Tensor  # [H, T, N]
    gate: Tensor  # for `joined`
    v_first: Tensor  # the values of the first layer, for the layers after this one


class _Projections(nn.Module):
    """Matrices and names that one token and many have in common."""

    def __init__(self, arrays: Arrays, i: int, T: int, lowest_log_decay: float) -> None:
        super().__init__()
        dims, att = Dims.of(arrays), f"blocks.{i}.att."
        self.T, self.H, self.N, self.att = T, dims.H, dims.N, att
        self.lowest_log_decay = lowest_log_decay
        self.kinds = "wagv" if i > 0 else "wag"  # of the LoRA pairs; the first layer has no value residual
        self.receptance = Linear(arrays, att + "receptance")
        self.key = Linear(arrays, att + "key")
        self.value = Linear(arrays, att + "value")


class StepProjections(_Projections):
    """For one token. A row of C is H rows of N, so reshaping moves nothing."""

    def __init__(self, arrays: Arrays, i: int, lowest_log_decay: float, weight_group: int) -> None:
        """Layer i."""
        super().__init__(arrays, i, 1, lowest_log_decay)
        self.rows = self.kinds + ("rk" if i > 0 else "rkv")  # v's mix serves its LoRA pair and its projection
        self.mix = Mix(arrays, [f"{self.att}x_{q}" for q in self.rows])
        self.loras = LowRanks(arrays, self.att, self.kinds, heads=(self.H, self.N), weight_group=weight_group)
        self.sigmoid, self.log_w, self.w = (Named(f32=True) for _ in range(3))

    def forward(self, x: Tensor, delta: Tensor, v_first: Tensor | None) -> Projected:
        """X and delta ``[1, 1, C]``, v_first ``[H, 1, N]``; the gate ``[H, 1, N]``."""
        H = self.H
        mixed = self.mix(x, delta)
        loras = self.loras(mixed[:, : len(self.kinds)])
        sigmoids = self.sigmoid(torch.sigmoid(loras))  # of the gate too, unused: one operation for all is the fastest
        # On H lanes: as [H, 1, N], on one lane, the exponential takes 1 us and not 0.1.
        w = self.heads(self.w(torch.exp(self.log_w(sigmoids[:, :H] * self.lowest_log_decay))))
        # Here, since the compiler keeps the order of operations: after the products they cost 0.4 us a layer.
        rate, gate = self.heads(sigmoids[:, H : 2 * H]), self.heads(loras[:, 2 * H : 3 * H])
        residual = self.heads(sigmoids[:, 3 * H :]) if v_first is not None else None
        row = {q: mixed[:, n : n + 1] for n, q in enumerate(self.rows)}
        r = self.heads(self.receptance(row["r"]))
        k = self.heads(self.key(row["k"]))
        v = self.heads(self.value(row["v"]))
        if v_first is not None and residual is not None:
            v = v + (v_first - v) * residual
        return Projected(r, w, k, v, rate, gate, v if v_first is None else v_first)

    def heads(self, x: Tensor) -> Tensor:
        """``[1, 1, C]`` or ``[1, H, N]`` -> ``[H, 1, N]``."""
        return x.reshape(self.H, 1, self.N)

    def joined(self, y: Tensor, gate: Tensor) -> Tensor:
        """``[H, 1, N]`` -> ``[1, 1, C]``, gated."""
        return (y * gate).reshape(1, 1, self.H * self.N)


class ChunkProjections(_Projections):
    """For T tokens, which lie on the lanes."""

    def __init__(self, arrays: Arrays, i: int, T: int, lowest_log_decay: float, weight_group: int) -> None:
        """Layer i."""
        super().__init__(arrays, i, T, lowest_log_decay)
        self.mix = nn.ModuleDict({q: Mix(arrays, [f"{self.att}x_{q}"]) for q in "wagvkr"})
        self.loras = nn.ModuleDict(
            {q: LowRank(arrays, self.att, q, weight_group=weight_group) for q in self.kinds},
        )

    def forward(self, x: Tensor, delta: Tensor, v_first: Tensor | None) -> Projected:
        """X, delta and v_first ``[1, T, C]``; the gate ``[1, T, C]``."""
        mixed = {q: mix(x, delta) for q, mix in self.mix.items()}
        lora = {q: pair(mixed[q]) for q, pair in self.loras.items()}
        log_w = torch.sigmoid(lora["w"]) * self.lowest_log_decay
        rate = torch.sigmoid(lora["a"])
        r = self.receptance(mixed["r"])
        k = self.key(mixed["k"])
        v = self.value(mixed["v"])
        if v_first is not None:
            v = v + (v_first - v) * torch.sigmoid(lora["v"])
        r, log_w, k, heads_v, rate = (self.heads(q) for q in (r, log_w, k, v, rate))
        return Projected(r, log_w, k, heads_v, rate, lora["g"], v if v_first is None else v_first)

    def heads(self, x: Tensor) -> Tensor:
        """``[1, T, C]`` -> ``[H, T, N]``, by a permute of four dimensions, which is part of the transfer back."""
        return x.reshape(1, self.T, self.H, self.N).permute(0, 2, 1, 3).reshape(self.H, self.T, self.N)

    def joined(self, y: Tensor, gate: Tensor) -> Tensor:
        """``[H, T, N]`` -> ``[1, T, C]``, gated.

        Heads put side by side stay on their lanes, so nothing leaves the chip: at 0.1B and 256 tokens that saves 34 us
        a layer over a permute.
        """
        return torch.cat([y[h : h + 1] for h in range(self.H)], dim=2) * gate


class TimeMix(nn.Module):
    """The whole of it, between layer norm and residual stream."""

    lowest_log_decay = -math.exp(-0.5)
    """log w is this times a sigmoid: w = exp(-e^(-1/2) sigmoid(d))."""

    def __init__(self, arrays: Arrays, i: int, T: int, *, weight_group: int = 1) -> None:
        """Layer i of a graph that takes T tokens a call; LoRA ranks become multiples of *weight_group*."""
        super().__init__()
        dims, att = Dims.of(arrays), f"blocks.{i}.att."
        H, N = dims.H, dims.N
        self.token_shift = TokenShift()
        self.projections: StepProjections | ChunkProjections
        self.recurrence: WkvStep | WkvChunks
        if T == 1:
            self.projections = StepProjections(arrays, i, self.lowest_log_decay, weight_group)
            self.recurrence = WkvStep(N)
        else:
            self.projections = ChunkProjections(arrays, i, T, self.lowest_log_decay, weight_group)
            self.recurrence = WkvChunks(T, N)
        self.v_first_shape = (H, 1, N) if T == 1 else (1, T, H * N)
        self.k_k, self.k_a, self.r_k, self.ln_x_weight, self.ln_x_bias = (
            constant(torch.as_tensor(arrays[att + name]).reshape(H, 1, N))
            for name in ("k_k", "k_a", "r_k", "ln_x.weight", "ln_x.bias")
        )
        self.r, self.decay, self.k, self.v, self.rate, self.gate, self.kappa, self.wkv = (Named() for _ in range(8))
        self.output = Linear(arrays, att + "output")

    def forward(
        self, x: Tensor, prev: Tensor, S: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X ``[1, T, C]``, prev ``[1, 1, C]``, S ``[H, N, N]``, v_first -> output, next prev, next S, v_first."""
        delta, shift = self.token_shift(x, prev)
        projected = self.projections(x, delta, v_first)
        names = (self.r, self.decay, nn.Identity(), self.v, self.rate, self.gate, nn.Identity())
        r, decay, k, v, rate, gate, v_first = (name(q) for name, q in zip(names, projected, strict=True))
        kappa = k * self.k_k
        norm_squared = torch.clamp((kappa * kappa).sum(dim=2, keepdim=True), min=_KEY_NORM_SQUARED_FLOOR)
        kappa = self.kappa(kappa / torch.sqrt(norm_squared))
        k = self.k(k * (1 + (rate - 1) * self.k_a))
        bonus = (r * k * self.r_k).sum(dim=2, keepdim=True) * v
        y, S = self.recurrence(r, decay, k, v, -kappa, kappa * rate, S)
        y = layer_norm(self.wkv(y), y.shape[2:], eps=_GROUP_NORM_EPS) * self.ln_x_weight + self.ln_x_bias + bonus
        return self.output(self.projections.joined(y, gate)), shift, S, v_first
