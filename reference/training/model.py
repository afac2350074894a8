"""RWKV-7 as a torch module: the formulas of :mod:`reference.naive` over batches, for training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import embedding, layer_norm, linear, normalize
from torch.utils.checkpoint import checkpoint

from reference.shape import GROUP_NORM_EPS, KEY_NORM_FLOOR, LAYER_NORM_EPS
from reference.training.wkv import wkv

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from reference.shape import ModelShape


class Trainable(nn.Module):
    """The weights of one model as parameters, by BlinkDL's names (with ``/`` for ``.``, which torch reserves)."""

    def __init__(self, shape: ModelShape, tensors: Mapping[str, Tensor], *, recompute: bool = False) -> None:
        """Copy the weights.

        Args:
            shape: the sizes.
            tensors: canonical tensors, as a :class:`reference.checkpoint.Checkpoint` holds them.
            recompute: keep only the blocks' inputs for the backward pass and compute the rest again (gradient
                checkpointing): less memory, a third more time.
        """
        super().__init__()
        self.shape = shape
        self.recompute = recompute
        self.weights = nn.ParameterDict({n.replace(".", "/"): nn.Parameter(t.clone()) for n, t in tensors.items()})

    def tensors(self) -> dict[str, Tensor]:
        """The weights by BlinkDL's names, detached, sharing memory with the parameters."""
        return {name.replace("/", "."): tensor.detach() for name, tensor in self.weights.items()}

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
        """Compute logits ``[B, T, V]`` after each of the tokens ``[B, T]``.

        Args:
            tokens: ids in ``[0, V)``.
            state: what stands before the first token: time-mix shift ``[L, C]``, WKV ``[L, H, N, N]``, channel-mix
                shift ``[L, C]``, the same for every row; None is zeros.
        """
        w, L = self.weights, self.shape.n_layer
        x = self._norm(embedding(tokens, w["emb/weight"]), "blocks/0/ln0")
        v_first: Tensor | None = None
        for i in range(L):
            before = None if state is None else (state[0][i], state[1][i], state[2][i])
            if self.recompute and torch.is_grad_enabled():
                x, v_first = checkpoint(self._block, i, x, v_first, before, use_reentrant=False)
            else:
                x, v_first = self._block(i, x, v_first, before)
        return linear(self._norm(x, "ln_out"), w["head/weight"])

    def _block(
        self, i: int, x: Tensor, v_first: Tensor | None, before: tuple[Tensor, Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        att_shift, S, ffn_shift = before or (None, None, None)
        y, v_first = self._time_mix(i, self._norm(x, f"blocks/{i}/ln1"), v_first, att_shift, S)
        x = x + y
        return x + self._channel_mix(i, self._norm(x, f"blocks/{i}/ln2"), ffn_shift), v_first

    def _time_mix(
        self, i: int, x: Tensor, v_first: Tensor | None, shift: Tensor | None, S: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        B, T, C = x.shape
        H, N = self.shape.n_head, self.shape.head_size
        p = {
            name.removeprefix(f"blocks/{i}/att/"): t
            for name, t in self.weights.items()
            if name.startswith(f"blocks/{i}/att/")
        }
        delta = _before(x, shift) - x
        x_r, x_w, x_k, x_v, x_a, x_g = (torch.addcmul(x, delta, p[f"x_{q}"]) for q in "rwkvag")
        r = linear(x_r, p["receptance/weight"])
        k = linear(x_k, p["key/weight"])
        v = linear(x_v, p["value/weight"])
        d = p["w0"] + torch.tanh(x_w @ p["w1"]) @ p["w2"]
        log_w = torch.sigmoid(d) * -math.exp(-0.5)
        a = torch.sigmoid(p["a0"] + x_a @ p["a1"] @ p["a2"])
        g = torch.sigmoid(x_g @ p["g1"]) @ p["g2"]
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(p["v0"] + x_v @ p["v1"] @ p["v2"])
        kappa = normalize((k * p["k_k"]).view(B, T, H, N), dim=-1, eps=KEY_NORM_FLOOR)
        k = k * (1 + (a - 1) * p["k_a"])
        r, log_w, k, v, a = (q.view(B, T, H, N) for q in (r, log_w, k, v, a))
        # Under autocast too, the state and its sums over time stay in the weights' own precision.
        start = log_w.new_zeros(B, H, N, N) if S is None else S.expand(B, H, N, N)
        with torch.autocast(x.device.type, enabled=False):
            r, k, v, kappa, a = (q.to(log_w.dtype) for q in (r, k, v, kappa, a))
            y, _ = wkv(r, log_w, k, v, kappa, a, start)
        y = layer_norm(y, (N,), eps=GROUP_NORM_EPS).reshape(B, T, C)
        y = torch.addcmul(p["ln_x/bias"], y, p["ln_x/weight"])
        bonus = (r * k * p["r_k"]).sum(dim=-1, keepdim=True) * v
        return linear((y + bonus.reshape(B, T, C)) * g, p["output/weight"]), v_first

    def _channel_mix(self, i: int, x: Tensor, shift: Tensor | None) -> Tensor:
        w, ffn = self.weights, f"blocks/{i}/ffn/"
        hidden = linear(torch.addcmul(x, _before(x, shift) - x, w[ffn + "x_k"]), w[ffn + "key/weight"])
        return linear(torch.relu(hidden).square(), w[ffn + "value/weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        w = self.weights
        return layer_norm(x, (self.shape.n_embd,), w[f"{name}/weight"], w[f"{name}/bias"], LAYER_NORM_EPS)


def _before(x: Tensor, first: Tensor | None) -> Tensor:
    """The row before each row of x ``[B, T, C]``; *first* ``[C]`` stands before the first, None is zeros."""
    B, _, C = x.shape
    head = x.new_zeros(B, 1, C) if first is None else first.to(x.dtype).expand(B, 1, C)
    return torch.cat([head, x[:, :-1]], dim=1)
