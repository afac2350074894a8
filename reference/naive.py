"""RWKV-7 one token at a time, float64 by default: the truth that everything else is judged against.

Sources of the formulas: BlinkDL/RWKV-LM, ``RWKV-v7/rwkv_v7_demo_rnn.py`` and ``rwkv_v7_numpy.py``. No cleverness here:
each line is one formula, nothing is batched, fused or rearranged.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from reference.shape import GROUP_NORM_EPS, KEY_NORM_FLOOR, LAYER_NORM_EPS
from reference.state import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from reference.checkpoint import Checkpoint

DECAY_SCALE = math.exp(-0.5)


class Naive:
    """The recurrence as it is written down."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float64) -> None:
        """Convert the checkpoint's tensors to *dtype*, in which everything is then computed."""
        self.shape = checkpoint.shape
        self.dtype = dtype
        self._weights = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()}

    def forward(self, tokens: Sequence[int], state: State | None = None) -> tuple[Tensor, State]:
        """Feed tokens one by one.

        Args:
            tokens: ids in ``[0, V)``, at least one.
            state: the state before the first of them; None is the zero state. It is not changed.

        Returns:
            Logits ``[T, V]`` after each token, and the state after the last; both in this model's dtype.
        """
        if not tokens:
            raise ValueError("no tokens; feed at least one")
        state = State.zeros(self.shape, self.dtype) if state is None else state.to(self.dtype)
        logits = []
        for token in tokens:
            if not 0 <= token < self.shape.n_vocab:
                raise ValueError(f"token id {token}, but should be in [0, {self.shape.n_vocab})")
            row, state = self._step(token, state)
            logits.append(row)
        return torch.stack(logits), state

    def _step(self, token: int, state: State) -> tuple[Tensor, State]:
        w = self._weights
        x = _layer_norm(w["emb.weight"][token], w, "blocks.0.ln0")
        v_first = torch.zeros_like(x)
        att_shift, wkv, ffn_shift = [], [], []
        for i in range(self.shape.n_layer):
            block = f"blocks.{i}."
            x_att = _layer_norm(x, w, block + "ln1")
            y, S, v_first = self._time_mix(i, x_att, state.att_shift[i], state.wkv[i], v_first)
            x = x + y
            x_ffn = _layer_norm(x, w, block + "ln2")
            x = x + self._channel_mix(i, x_ffn, state.ffn_shift[i])
            att_shift.append(x_att)
            wkv.append(S)
            ffn_shift.append(x_ffn)
        logits = w["head.weight"] @ _layer_norm(x, w, "ln_out")
        return logits, State(torch.stack(att_shift), torch.stack(wkv), torch.stack(ffn_shift))

    def _time_mix(self, i: int, x: Tensor, x_prev: Tensor, S: Tensor, v_first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One token's time-mix: x, x_prev ``[C]``, S ``[H, N, N]`` -> output ``[C]``, new S, v_first."""
        p = {
            name.removeprefix(f"blocks.{i}.att."): t for name, t in self._weights.items() if f"blocks.{i}.att." in name
        }
        H, N = self.shape.n_head, self.shape.head_size
        x_r, x_w, x_k, x_v, x_a, x_g = (x + (x_prev - x) * p[f"x_{q}"] for q in "rwkvag")

        r = p["receptance.weight"] @ x_r
        k = p["key.weight"] @ x_k
        v = p["value.weight"] @ x_v
        d = p["w0"] + torch.tanh(x_w @ p["w1"]) @ p["w2"]
        w = torch.exp(-DECAY_SCALE * torch.sigmoid(d))
        a = torch.sigmoid(p["a0"] + x_a @ p["a1"] @ p["a2"])
        g = torch.sigmoid(x_g @ p["g1"]) @ p["g2"]
        if i == 0:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(p["v0"] + x_v @ p["v1"] @ p["v2"])

        kappa = normalize((k * p["k_k"]).view(H, N), dim=-1, eps=KEY_NORM_FLOOR)
        k = k * (1 + (a - 1) * p["k_a"])

        heads = []
        S_new = []
        r, w, k, v, a = (q.view(H, N) for q in (r, w, k, v, a))
        for h in range(H):
            # S_t = S_{t-1} diag(w) - (S_{t-1} kappa) (kappa * a)^T + v k^T;   y = S_t r
            removed = torch.outer(S[h] @ kappa[h], kappa[h] * a[h])
            S_h = S[h] * w[h] - removed + torch.outer(v[h], k[h])
            y = S_h @ r[h]
            y = (y - y.mean()) / torch.sqrt(y.var(correction=0) + GROUP_NORM_EPS)
            y = y * p["ln_x.weight"].view(H, N)[h] + p["ln_x.bias"].view(H, N)[h]
            heads.append(y + (r[h] * k[h] * p["r_k"][h]).sum() * v[h])
            S_new.append(S_h)
        return p["output.weight"] @ (torch.cat(heads) * g), torch.stack(S_new), v_first

    def _channel_mix(self, i: int, x: Tensor, x_prev: Tensor) -> Tensor:
        """One token's channel-mix: x, x_prev ``[C]`` -> output ``[C]``."""
        w, ffn = self._weights, f"blocks.{i}.ffn."
        h = x + (x_prev - x) * w[ffn + "x_k"]
        return w[ffn + "value.weight"] @ torch.relu(w[ffn + "key.weight"] @ h) ** 2


def _layer_norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    centred = (x - x.mean()) / torch.sqrt(x.var(correction=0) + LAYER_NORM_EPS)
    return centred * weights[name + ".weight"] + weights[name + ".bias"]
