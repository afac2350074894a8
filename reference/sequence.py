"""RWKV-7 over a whole sequence at once: matrix products for all tokens, a time loop for the WKV state alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import group_norm, layer_norm, normalize

from reference.shape import GROUP_NORM_EPS, KEY_NORM_FLOOR, LAYER_NORM_EPS
from reference.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from reference.checkpoint import Checkpoint


class SequenceModel:
    """The everyday oracle: float32, much faster than the naive recurrence and tested against it."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
        """Convert the checkpoint's tensors to *dtype*, in which everything is then computed."""
        self.shape = checkpoint.shape
        self.dtype = dtype
        self._weights = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()}

    @torch.no_grad()
    def forward(self, tokens: Sequence[int], state: State | None = None) -> tuple[Tensor, State]:
        """Feed tokens; arguments and results as of :meth:`reference.naive.Naive.forward`."""
        if not tokens:
            raise ValueError("no tokens; feed at least one")
        if not (min(tokens) >= 0 and max(tokens) < self.shape.n_vocab):
            raise ValueError(f"token ids {min(tokens)} to {max(tokens)}, but should be in [0, {self.shape.n_vocab})")
        state = State.zeros(self.shape, self.dtype) if state is None else state.to(self.dtype)
        w = self._weights
        x = self._norm(w["emb.weight"][list(tokens)], "blocks.0.ln0")
        v_first: Tensor | None = None
        att_shift, wkv, ffn_shift = [], [], []
        for i in range(self.shape.n_layer):
            x_att = self._norm(x, f"blocks.{i}.ln1")
            y, S, v_first = self._time_mix(i, x_att, state.att_shift[i], state.wkv[i], v_first)
            x = x + y
            x_ffn = self._norm(x, f"blocks.{i}.ln2")
            x = x + self._channel_mix(i, x_ffn, state.ffn_shift[i])
            att_shift.append(x_att[-1])
            wkv.append(S)
            ffn_shift.append(x_ffn[-1])
        logits = self._norm(x, "ln_out") @ w["head.weight"].T
        return logits, State(torch.stack(att_shift), torch.stack(wkv), torch.stack(ffn_shift))

    def _time_mix(
        self, i: int, x: Tensor, x_last: Tensor, S: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """X ``[T, C]``, x_last ``[C]``, S ``[H, N, N]`` -> output ``[T, C]``, S after the last token, v_first."""
        w, att = self._weights, f"blocks.{i}.att."
        H, N = self.shape.n_head, self.shape.head_size
        delta = torch.cat([x_last[None], x[:-1]]) - x

        def shifted(q: str) -> Tensor:
            return torch.addcmul(x, delta, w[f"{att}x_{q}"])

        x_v = shifted("v")
        r = shifted("r") @ w[att + "receptance.weight"].T
        k = shifted("k") @ w[att + "key.weight"].T
        v = x_v @ w[att + "value.weight"].T
        decay = torch.sigmoid(w[att + "w0"] + torch.tanh(shifted("w") @ w[att + "w1"]) @ w[att + "w2"])
        decay = torch.exp(decay * -math.exp(-0.5))
        a = torch.sigmoid(w[att + "a0"] + shifted("a") @ w[att + "a1"] @ w[att + "a2"])
        g = torch.sigmoid(shifted("g") @ w[att + "g1"]) @ w[att + "g2"]
        if v_first is None:
            v_first = v
        else:
            v = torch.lerp(v, v_first, torch.sigmoid(w[att + "v0"] + x_v @ w[att + "v1"] @ w[att + "v2"]))

        kappa = normalize((k * w[att + "k_k"]).view(-1, H, N), dim=-1, eps=KEY_NORM_FLOOR)
        k = k * (1 + (a - 1) * w[att + "k_a"])
        r, decay, k, v, a = (q.view(-1, H, N) for q in (r, decay, k, v, a))
        y = torch.empty_like(r)
        for t in range(len(x)):
            removal = (S @ kappa[t, :, :, None]) * (kappa[t] * a[t])[:, None, :]
            S = S * decay[t, :, None, :] - removal + v[t, :, :, None] * k[t, :, None, :]
            y[t] = (S @ r[t, :, :, None])[..., 0]

        y = group_norm(y.flatten(1), H, w[att + "ln_x.weight"], w[att + "ln_x.bias"], GROUP_NORM_EPS)
        bonus = (r * k * w[att + "r_k"]).sum(dim=-1, keepdim=True) * v
        return ((y + bonus.flatten(1)) * g) @ w[att + "output.weight"].T, S, v_first

    def _channel_mix(self, i: int, x: Tensor, x_last: Tensor) -> Tensor:
        """X ``[T, C]``, x_last ``[C]`` -> output ``[T, C]``."""
        w, ffn = self._weights, f"blocks.{i}.ffn."
        delta = torch.cat([x_last[None], x[:-1]]) - x
        hidden = torch.relu(torch.addcmul(x, delta, w[ffn + "x_k"]) @ w[ffn + "key.weight"].T)
        return hidden.square() @ w[ffn + "value.weight"].T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[name + ".weight"], self._weights[name + ".bias"]
        return layer_norm(x, (self.shape.n_embd,), weight, bias, LAYER_NORM_EPS)
