"""RWKV-7 with one method for each formula, so that a fault replaces one and leaves the rest right."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import layer_norm, normalize

from reference.emulated import _Rounding, stored
from reference.shape import GROUP_NORM_EPS, KEY_NORM_FLOOR, LAYER_NORM_EPS
from reference.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from reference.checkpoint import Checkpoint
    from reference.precision import Precision

DECAY_SCALE = math.exp(-0.5)


class Formulas:
    """The recurrence in float32, with the rounding of a compiled model where a precision is given.

    What is rounded is what :class:`reference.emulated.Emulated` rounds; what it exempts is exempt here. Tensors have
    the axes ``[T, C]``, those of the heads ``[T, H, N]``, the WKV state of a layer ``[H, N, N]``.
    """

    decay_scale = DECAY_SCALE
    group_norm_eps = GROUP_NORM_EPS

    def __init__(self, checkpoint: Checkpoint, precision: Precision | None) -> None:
        """Round the checkpoint's weights to *precision*; None is float32 throughout."""
        self.shape = checkpoint.shape
        self.weights = (self.stored(checkpoint, precision) if precision else checkpoint).tensors
        self._rounding = _Rounding(precision) if precision else None
        self._layers: dict[tuple[int, str], dict[str, Tensor]] = {}

    def stored(self, checkpoint: Checkpoint, precision: Precision) -> Checkpoint:
        """The checkpoint that the precision's weights stand for."""
        return stored(checkpoint, precision)

    @torch.no_grad()
    def forward(self, tokens: Sequence[int], state: State) -> tuple[Tensor, State]:
        """Logits ``[T, V]`` of every position, and the state after the last; *state* is not changed."""
        w, after = self.weights, []
        x = self.embedding_norm(self.embed(tokens))
        v_first = None
        with self._rounding or nullcontext():
            for i in range(self.shape.n_layer):
                x_att, delta = self._shifted(self._norm(x, f"blocks.{i}.ln1"), state.att_shift[i])
                y, S, v_first = self.time_mix(i, x_att, delta, state.wkv[i], v_first)
                x = x + y
                x_ffn, delta = self._shifted(self._norm(x, f"blocks.{i}.ln2"), state.ffn_shift[i])
                x = x + self.channel_mix(i, x_ffn, delta)
                after.append((x_att[-1], S, x_ffn[-1]))
            logits = self._norm(x, "ln_out") @ w["head.weight"].T
        return logits, State(*(torch.stack(part) for part in zip(*after, strict=True)))

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Rows of the embedding."""
        return self.weights["emb.weight"][torch.tensor(tokens)]

    def embedding_norm(self, x: Tensor) -> Tensor:
        """The layer norm that stands before block 0."""
        return self._norm(x, "blocks.0.ln0")

    def previous(self, x: Tensor, before: Tensor) -> Tensor:
        """The row before each of x, *before* ``[C]`` being the one before the first."""
        return torch.cat([before[None], x[:-1]])

    def time_mix(
        self, i: int, x: Tensor, delta: Tensor, S: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output ``[T, C]``, the WKV state after, and v_first."""
        H, N = self.shape.n_head, self.shape.head_size
        p = self.layer(i, "att")
        x_r, x_w, x_k, x_v, x_a, x_g = (x + delta * p[f"x_{q}"] for q in "rwkvag")
        r, k, v = x_r @ p["receptance.weight"].T, x_k @ p["key.weight"].T, x_v @ p["value.weight"].T
        log_w = self.log_decay(torch.tanh(x_w @ p["w1"]) @ p["w2"] + p["w0"])
        a = torch.sigmoid(x_a @ p["a1"] @ p["a2"] + p["a0"])
        g = self.gate(torch.sigmoid(x_g @ p["g1"]) @ p["g2"])
        if v_first is None:
            v_first = v
        else:
            v, v_first = self.value_residual(v, v_first, torch.sigmoid(x_v @ p["v1"] @ p["v2"] + p["v0"]))
        kappa = self.removal_key((k * p["k_k"]).view(-1, H, N))
        k = k + k * (a - 1) * p["k_a"]
        r, log_w, k, v, a = (q.view(-1, H, N) for q in (r, log_w, k, v, a))
        with self._exempt():
            y, S = self.wkv(r, log_w, k, v, kappa, a, S)
        y = self.group_norm(y) * p["ln_x.weight"] + p["ln_x.bias"]
        y = y + self.bonus(r, k, v, p["r_k"]).reshape(-1, H * N)
        return (y * g) @ p["output.weight"].T, S, v_first

    def layer(self, i: int, part: str) -> dict[str, Tensor]:
        """The tensors of a layer's time-mix ``att`` or channel-mix ``ffn``, by their last names."""
        if (i, part) not in self._layers:
            prefix = f"blocks.{i}.{part}."
            self._layers[i, part] = {
                name.removeprefix(prefix): t for name, t in self.weights.items() if name.startswith(prefix)
            }
        return self._layers[i, part]

    def log_decay(self, d: Tensor) -> Tensor:
        """The logarithm of the decays."""
        return -self.decay_scale * torch.sigmoid(d)

    def gate(self, g: Tensor) -> Tensor:
        """What the time-mix's output is multiplied with."""
        return g

    def value_residual(self, v: Tensor, v_first: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
        """The values of a later block, and what the next one takes as v_first."""
        return v + (v_first - v) * mix, v_first

    def removal_key(self, k: Tensor) -> Tensor:
        """Keys of length 1."""
        return normalize(k, dim=-1, eps=KEY_NORM_FLOOR)

    def wkv(
        self, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, S: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``S ← S diag(w) - (S κ)(κ ⊙ a)ᵀ + v kᵀ; y = S r``, one token after another."""
        w, b, rows = log_w.exp(), kappa * a, []
        for t in range(len(r)):
            removed = (S @ kappa[t, :, :, None]) * b[t, :, None, :]
            S = S * w[t, :, None, :] - removed + v[t, :, :, None] * k[t, :, None, :]
            rows.append((S @ r[t, :, :, None])[..., 0])
        return torch.stack(rows), S

    def group_norm(self, y: Tensor) -> Tensor:
        """Each head's output ``[T, H, N]`` brought to mean 0 and variance 1: ``[T, C]``."""
        return layer_norm(y, y.shape[-1:], eps=self.group_norm_eps).reshape(len(y), -1)

    def bonus(self, r: Tensor, k: Tensor, v: Tensor, r_k: Tensor) -> Tensor:
        """What a token adds of itself ``[T, H, N]``."""
        return (r * k * r_k).sum(dim=-1, keepdim=True) * v

    def channel_mix(self, i: int, x: Tensor, delta: Tensor) -> Tensor:
        """Output ``[T, C]``."""
        p = self.layer(i, "ffn")
        return self.activation((x + delta * p["x_k"]) @ p["key.weight"].T) @ p["value.weight"].T

    def activation(self, key: Tensor) -> Tensor:
        """Of the channel-mix."""
        return torch.relu(key) ** 2

    def _norm(self, x: Tensor, name: str) -> Tensor:
        with self._exempt():
            weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
            return layer_norm(x, x.shape[-1:], weight, bias, LAYER_NORM_EPS)

    def _shifted(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        with self._exempt():
            return x, self.previous(x, before) - x

    def _exempt(self) -> Any:
        return self._rounding.paused() if self._rounding else nullcontext()


def variant(base: type[Formulas] = Formulas, **pieces: Any) -> type[Formulas]:
    """The same formulas with some pieces replaced: constants, or functions in place of methods."""
    return type("Variant", (base,), pieces)
