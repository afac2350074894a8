"""The model as ports of RWKV-7 usually write it: ``[T, C]`` tensors, and a loop over tokens that tracing unrolls.

The baseline for speed, and a second way to the same numbers: apart from names and marks it shares nothing with the
chunk variant, and writes every formula as the training code does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, softplus

from compile.dims import Dims
from compile.graphs.model import Rwkv7
from compile.graphs.named import Named

if TYPE_CHECKING:
    from compile.dims import Arrays

_LAYER_NORM_EPS = 1e-5
_GROUP_NORM_EPS = 64e-5
_KEY_NORM_FLOOR = 2.5e-4  # its square is a float16, that of the formula's 1e-12 is not


class Rwkv7Loop(Rwkv7):
    """The whole model for T tokens a call; inputs and outputs of :class:`Rwkv7`, whose formulas it does not use."""

    def __init__(
        self,
        arrays: Arrays,
        *,
        T: int,
        every_position: bool,
        weight_group: int = 1,  # noqa: ARG002 - the contract's; here ranks stay as they are
    ) -> None:
        """Build from arrays by BlinkDL's names; sizes are read from them."""
        nn.Module.__init__(self)
        self.dims = Dims.of(arrays)
        self.T = T
        self.every_position = every_position
        self.embedding_norm = _weights(arrays, "blocks.0.ln0.")
        self.final_norm = _weights(arrays, "ln_out.")
        self.emb = nn.Parameter(torch.tensor(arrays["emb.weight"], dtype=torch.float32), requires_grad=False)
        self.projection = _weights(arrays, "head.")
        self.blocks = nn.ModuleList(_Block(arrays, i) for i in range(self.dims.L))
        self.embedded, self.normed = Named(f32=True), Named(f32=True)

    def forward(self, token: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Token ids ``[1, T]`` and 3 L states -> logits ``[1, T or 1, V]`` and the 3 L next states."""
        x = self.embedded(_layer_norm(self.emb[token.reshape(self.T)], self.embedding_norm))
        v_first = None
        next_states: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x, new, v_first = block(x, *states[3 * i : 3 * i + 3], v_first)
            next_states += new
        if not self.every_position:
            x = x[-1:]
        logits = self.normed(_layer_norm(x, self.final_norm)) @ self.projection["weight"]
        return logits.reshape(1, *logits.shape), *next_states


class _Block(nn.Module):
    """One layer: both mixes, each on its layer norm, each added to the residual stream."""

    def __init__(self, arrays: Arrays, i: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = (_weights(arrays, f"blocks.{i}.{ln}.") for ln in ("ln1", "ln2"))
        self.att = _TimeMix(arrays, i)
        self.ffn = _ChannelMix(arrays, i)
        self.normed1, self.normed2 = Named(f32=True), Named(f32=True)
        self.out = Named()

    def forward(
        self, x: Tensor, att_shift: Tensor, S: Tensor, ffn_shift: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """X ``[T, C]`` and the layer's three states -> x, the three next states, v_first."""
        y, att_shift, S, v_first = self.att(self.normed1(_layer_norm(x, self.ln1)), att_shift, S, v_first)
        x = x + y
        y, ffn_shift = self.ffn(self.normed2(_layer_norm(x, self.ln2)), ffn_shift)
        return self.out(x + y), [att_shift, S, ffn_shift], v_first


class _TokenShift(nn.Module):
    """What mixes every token with the one before; in float32, since the trained weights magnify what rounding costs."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.rest, self.before, self.delta, self.last, self.shift = (Named(f32=True) for _ in range(6))
        self.scaled, self.mixed = Named(f32=True), Named(f32=True)

    def forward(self, x: Tensor, prev: Tensor, *mus: Tensor) -> tuple[list[Tensor], Tensor]:
        """X ``[T, C]``, prev ``[1, 1, C]``, weights ``[C]`` -> a mix ``[T, C]`` for each weight; the next prev."""
        row = self.row(prev.reshape(1, -1))
        if len(x) == 1:
            before, last = row, x
        else:
            before, last = self.before(torch.cat([row, self.rest(x[:-1])])), self.last(x[-1:])
        delta = self.delta(before - x)
        return [self.mixed(x + self.scaled(delta * mu)) for mu in mus], self.shift(last.reshape(1, 1, -1))


class _TimeMix(nn.Module):
    """Token shift, projections of all tokens, the recurrence token by token, group norm, bonus, gate."""

    def __init__(self, arrays: Arrays, i: int) -> None:
        super().__init__()
        dims = Dims.of(arrays)
        self.H, self.N = dims.H, dims.N
        self.w = _weights(arrays, f"blocks.{i}.att.")
        self.token_shift = _TokenShift()
        self.recurrence = _Recurrence()
        self.r, self.k, self.v, self.log_w, self.rate, self.gate, self.kappa, self.wkv = (Named() for _ in range(8))

    def forward(
        self, x: Tensor, prev: Tensor, S: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X ``[T, C]``, prev ``[1, 1, C]``, S ``[H, N, N]`` -> output, next prev, next S, v_first."""
        w, H, N, T = self.w, self.H, self.N, len(x)
        (x_r, x_w, x_k, x_v, x_a, x_g), shift = self.token_shift(x, prev, *(w[f"x_{q}"] for q in "rwkvag"))
        r = self.r(x_r @ w["receptance_weight"])
        k = x_k @ w["key_weight"]
        v = x_v @ w["value_weight"]
        log_w = self.log_w(-torch.exp(-softplus(-(w["w0"] + torch.tanh(x_w @ w["w1"]) @ w["w2"])) - 0.5))
        a = self.rate(torch.sigmoid(w["a0"] + (x_a @ w["a1"]) @ w["a2"]))
        g = self.gate(torch.sigmoid(x_g @ w["g1"]) @ w["g2"])
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(w["v0"] + (x_v @ w["v1"]) @ w["v2"])
        v = self.v(v)

        # Heads lie one below the other: [T H, N].
        kappa = (k * w["k_k"]).reshape(T * H, N)
        norm = torch.clamp(torch.linalg.vector_norm(kappa, dim=1, keepdim=True), min=_KEY_NORM_FLOOR)
        kappa = self.kappa(kappa / norm).reshape(T, H * N)
        k = self.k(k * (1 + (a - 1) * w["k_a"]))

        ys = []
        for t in range(T):
            row, column = (H, 1, N), (H, N, 1)
            y, S = self.recurrence(
                r[t].reshape(column),
                log_w[t].reshape(row),
                k[t].reshape(row),
                v[t].reshape(column),
                kappa[t].reshape(column),
                (kappa[t] * a[t]).reshape(row),
                S,
            )
            ys.append(y.reshape(1, H * N))
        y = self.wkv(torch.cat(ys) if T > 1 else ys[0])

        y = layer_norm(y.reshape(T * H, N), (N,), eps=_GROUP_NORM_EPS).reshape(T, H * N)
        y = y * w["ln_x_weight"] + w["ln_x_bias"]
        bonus = (r * k * w["r_k"].reshape(H * N)).reshape(T * H, N).sum(dim=1, keepdim=True) * v.reshape(T * H, N)
        return (y + bonus.reshape(T, H * N)) * g @ w["output_weight"], shift, S, v_first


class _Recurrence(nn.Module):
    """One token: S <- S diag(w) - S kappa (kappa a)^T + v k^T, y = S r; the state's update in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.kept, self.removed, self.updated, self.written, self.state = (Named(f32=True) for _ in range(6))

    def forward(
        self, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, kappa_a: Tensor, S: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Columns r, v, kappa ``[H, N, 1]``; rows log_w, k, kappa_a ``[H, 1, N]``; S ``[H, N, N]`` -> y as r, new S."""
        removed = self.removed(S @ (kappa @ kappa_a))
        S = self.updated(self.kept(S * self.w(torch.exp(log_w))) - removed)
        S = self.state(S + self.written(v @ k))
        return S @ r, S


class _ChannelMix(nn.Module):
    """Token shift, then a two-layer perceptron with squared ReLU."""

    def __init__(self, arrays: Arrays, i: int) -> None:
        super().__init__()
        self.w = _weights(arrays, f"blocks.{i}.ffn.")
        self.token_shift = _TokenShift()
        self.hidden = Named()

    def forward(self, x: Tensor, prev: Tensor) -> tuple[Tensor, Tensor]:
        """X ``[T, C]``, prev ``[1, 1, C]`` -> output, next prev."""
        (mixed,), shift = self.token_shift(x, prev, self.w["x_k"])
        hidden = self.hidden(torch.relu(mixed @ self.w["key_weight"]) ** 2)
        return hidden @ self.w["value_weight"], shift


def _weights(arrays: Arrays, prefix: str) -> nn.ParameterDict:
    """The arrays below *prefix*, dots in the rest of the name as underscores; matrices ``[out, in]`` transposed."""
    weights = nn.ParameterDict()
    for name, array in arrays.items():
        if name.startswith(prefix):
            tensor = torch.tensor(array.T if name.endswith(".weight") else array, dtype=torch.float32)
            weights[name.removeprefix(prefix).replace(".", "_")] = nn.Parameter(tensor, requires_grad=False)
    return weights


def _layer_norm(x: Tensor, ln: nn.ParameterDict) -> Tensor:
    return layer_norm(x, ln["weight"].shape, ln["weight"], ln["bias"], _LAYER_NORM_EPS)
