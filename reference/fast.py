"""RWKV-7 over many sequences at once: matrix products for all tokens, the WKV state by chunks. The everyday oracle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import layer_norm, linear, normalize

from reference.formats.blinkdl import is_lora
from reference.shape import GROUP_NORM_EPS, KEY_NORM_FLOOR, LAYER_NORM_EPS
from reference.state import State
from reference.wkv import plan, wkv_chunks, wkv_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from reference.checkpoint import Checkpoint
    from reference.wkv import ChunkPlan

_NOT_ROUNDED = (".bias", ".k_k", ".k_a", ".r_k", *(f"{ln}.weight" for ln in ("ln0", "ln1", "ln2", "ln_x", "ln_out")))

_PARTS = 8

BATCH_TOKENS = 1024
"""Tokens that are computed at once: more is no faster on a CPU, and memory grows with it."""

HEAD_ROWS = 256
"""Positions whose logits exist at once: 64 MiB of float32 at a vocabulary of 65,536."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model says about given tokens.

    Attributes:
        log_probs: ``[n]`` float64: natural log-probability of each token, given all before it.
        is_top: ``[n]`` bool: whether it was the likeliest one.
    """

    log_probs: Tensor
    is_top: Tensor


class Fast:
    """RWKV-7 in float32, float64 or bfloat16, on a CPU or a CUDA device; tested against the naive recurrence.

    In bfloat16 the matrices and what they are multiplied with are rounded; sums over time, norms and the state stay in
    float32, as in the releases' own code.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> None:
        """Convert the checkpoint's tensors: *dtype* is that of the matrix products."""
        self.shape = checkpoint.shape
        self.dtype = dtype
        self.device = torch.device(device)
        self.state_dtype = torch.float64 if dtype is torch.float64 else torch.float32
        """What the state and everything element-wise is computed in."""
        self._weights = {name: self._prepared(name, tensor) for name, tensor in checkpoint.tensors.items()}

    def forward(self, tokens: Sequence[int], state: State | None = None) -> tuple[Tensor, State]:
        """Feed one sequence; arguments and results as of :meth:`reference.naive.Naive.forward`."""
        hidden, (state,) = self.hidden([tokens], None if state is None else [state])
        return self.logits(hidden), state

    @torch.no_grad()
    def hidden(
        self, sequences: Sequence[Sequence[int]], states: Sequence[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        """Feed B sequences of any lengths, all at once.

        Args:
            sequences: of token ids in ``[0, V)``, each at least one.
            states: the state before each of them; None is the zero state for all. They are not changed.

        Returns:
            What the head takes, ``[ΣT, C]``, one sequence behind the other, and the state after each.
        """
        lengths = [len(tokens) for tokens in sequences]
        if not lengths or not all(lengths):
            raise ValueError("no tokens; feed at least one of each sequence")
        flat = [token for tokens in sequences for token in tokens]
        if not (min(flat) >= 0 and max(flat) < self.shape.n_vocab):
            raise ValueError(f"token ids {min(flat)} to {max(flat)}, but should be in [0, {self.shape.n_vocab})")
        if states is None:
            states = [State.zeros(self.shape, self.state_dtype)] * len(lengths)
        before = [_stacked(part).to(self.device, self.state_dtype) for part in _parts(states)]
        after: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        ends = torch.tensor(lengths, device=self.device).cumsum(0)
        batch = Batch(
            first=torch.cat([ends.new_zeros(1), ends[:-1]]),
            last=ends - 1,
            chunks=plan(lengths, self.device) if max(lengths) > 1 else None,
        )
        x = self._norm(self._weights["emb.weight"][torch.tensor(flat, device=self.device)], "blocks.0.ln0")
        v_first: Tensor | None = None
        for i in range(self.shape.n_layer):
            x, v_first, *last = self._block(i, x, v_first, [part[i] for part in before], batch)
            for part, tensor in zip(after, last, strict=True):
                part.append(tensor)
        att_shift, wkv, ffn_shift = (torch.stack(part, dim=1).cpu() for part in after)
        return self._norm(x, "ln_out"), [State(*parts) for parts in zip(att_shift, wkv, ffn_shift, strict=True)]

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[T, V]``, on the CPU, of what :meth:`hidden` gave ``[T, C]``."""
        return self._head(hidden).cpu()

    @torch.no_grad()
    def score(self, texts: Sequence[tuple[Sequence[int], Sequence[int]]], state: State | None = None) -> list[Scored]:
        """How likely is each continuation after its prompt?

        The texts are computed in groups of similar length, and logits exist for a few positions at a time, so that
        memory is bounded however many texts there are and however large the vocabulary is.

        Args:
            texts: pairs of prompt and continuation, at least one token each.
            state: the state before every prompt; None is the zero state.
        """
        if not all(prompt and continuation for prompt, continuation in texts):
            raise ValueError("a prompt or continuation is empty; each needs at least one token")
        scored: list[Scored | None] = [None] * len(texts)
        for group in _groups([len(prompt) + len(continuation) - 1 for prompt, continuation in texts]):
            fed = [[*texts[i][0], *texts[i][1][:-1]] for i in group]
            hidden, _ = self.hidden(fed, None if state is None else [state] * len(group))
            ends = torch.tensor([len(tokens) for tokens in fed]).cumsum(0).tolist()
            rows = [
                end - len(texts[i][1]) + j for i, end in zip(group, ends, strict=True) for j in range(len(texts[i][1]))
            ]
            wanted = torch.tensor([token for i in group for token in texts[i][1]], device=self.device)
            log_probs, is_top = self._judge(hidden[torch.tensor(rows, device=self.device)], wanted)
            sizes = [len(texts[i][1]) for i in group]
            for i, parts in zip(
                group, zip(torch.split(log_probs, sizes), torch.split(is_top, sizes), strict=True), strict=True
            ):
                scored[i] = Scored(*parts)
        return [one for one in scored if one is not None]

    def _judge(self, hidden: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of the token *wanted* ``[n]`` at each row of *hidden* ``[n, C]``, and is it the top?"""
        log_probs, is_top = [], []
        for rows, tokens in zip(torch.split(hidden, HEAD_ROWS), torch.split(wanted, HEAD_ROWS), strict=True):
            logits = self._head(rows)
            of_wanted = logits.gather(1, tokens[:, None])[:, 0]
            log_probs.append((of_wanted.double() - logits.logsumexp(dim=1).double()).cpu())
            is_top.append((logits.argmax(dim=1) == tokens).cpu())
        return torch.cat(log_probs), torch.cat(is_top)

    def _head(self, hidden: Tensor) -> Tensor:
        return _product(hidden.to(self.dtype), self._weights["head.weight"]).to(self.state_dtype)

    def _block(
        self, i: int, x: Tensor, v_first: Tensor | None, before: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """X ``[ΣT, C]`` and the three states of this layer -> x, v_first, and the states after each sequence."""
        att_shift, S, ffn_shift = before
        shifted, att_shift = self._shift(self._norm(x, f"blocks.{i}.ln1"), att_shift, batch)
        y, S, v_first = self._time_mix(i, *shifted, S, v_first, batch)
        x = x + y
        shifted, ffn_shift = self._shift(self._norm(x, f"blocks.{i}.ln2"), ffn_shift, batch)
        return x + self._channel_mix(i, *shifted), v_first, att_shift, S, ffn_shift

    def _time_mix(
        self, i: int, x: Tensor, delta: Tensor, S: Tensor, v_first: Tensor | None, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """X, delta ``[ΣT, C]``, S ``[B, H, N, N]`` -> output ``[ΣT, C]``, S after the last tokens, v_first."""
        w, att = self._weights, f"blocks.{i}.att."
        H, N = self.shape.n_head, self.shape.head_size
        x_r, x_w, x_k, x_v, x_a, x_g = (torch.addcmul(x, delta, w[f"{att}x_{q}"]) for q in "rwkvag")
        r = _product(x_r, w[att + "receptance.weight"])
        k = _product(x_k, w[att + "key.weight"])
        v = _product(x_v, w[att + "value.weight"])
        d = _product(torch.tanh(_product(x_w, w[att + "w1"])), w[att + "w2"]) + w[att + "w0"]
        log_w = torch.sigmoid(d.to(self.state_dtype)).mul_(-math.exp(-0.5))
        a = torch.sigmoid(_product(_product(x_a, w[att + "a1"]), w[att + "a2"]) + w[att + "a0"])
        g = _product(torch.sigmoid(_product(x_g, w[att + "g1"])), w[att + "g2"])
        if v_first is None:
            v_first = v
        else:
            mix = torch.sigmoid(_product(_product(x_v, w[att + "v1"]), w[att + "v2"]) + w[att + "v0"])
            v = torch.lerp(v, v_first, mix)
        r, k, v, a = (q.to(self.state_dtype) for q in (r, k, v, a))
        kappa = normalize((k * w[att + "k_k"]).view(-1, H, N), dim=-1, eps=KEY_NORM_FLOOR)
        k = torch.addcmul(k, k * (a - 1), w[att + "k_a"])
        r, log_w, k, v, a = (q.view(-1, H, N) for q in (r, log_w, k, v, a))
        y, S = self._wkv(r, log_w, k, v, kappa, a, S, batch)
        y = layer_norm(y, (N,), eps=GROUP_NORM_EPS).view(-1, H * N)
        y = torch.addcmul(w[att + "ln_x.bias"], y, w[att + "ln_x.weight"])
        bonus = (r * k).mul_(w[att + "r_k"]).sum(dim=-1, keepdim=True)
        y = y.view(-1, H, N).addcmul_(bonus, v).view(-1, H * N)
        return _product(y.mul_(g).to(self.dtype), w[att + "output.weight"]), S, v_first

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
        """Arguments and results as of :func:`reference.wkv.wkv_chunks`."""
        if batch.chunks is None:
            return wkv_step(r, log_w, k, v, kappa, a, S)
        return wkv_chunks(r, log_w, k, v, kappa, a, S, batch.chunks)

    def _channel_mix(self, i: int, x: Tensor, delta: Tensor) -> Tensor:
        """X, delta ``[ΣT, C]`` -> output ``[ΣT, C]``."""
        w, ffn = self._weights, f"blocks.{i}.ffn."
        hidden = _product(torch.addcmul(x, delta, w[ffn + "x_k"]), w[ffn + "key.weight"])
        return _product(torch.relu_(hidden).square_(), w[ffn + "value.weight"])

    def _prepared(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as the formulas use it: matrices are ``[out, in]``, the LoRA pairs too.

        What norms and sums over time use is not rounded.
        """
        if is_lora(name):
            tensor = tensor.T
        dtype = self.state_dtype if name.endswith(_NOT_ROUNDED) else self.dtype
        return tensor.to(self.device, dtype).contiguous()

    def _shift(self, x: Tensor, before: Tensor, batch: Batch) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Pair x ``[ΣT, C]`` with what leads from each row to the row before it; and each sequence's last row.

        *before* ``[B, C]`` are the rows before the sequences.
        """
        if batch.chunks is None:
            return (x.to(self.dtype), (before - x).to(self.dtype)), x
        delta = torch.empty_like(x)
        torch.sub(x[:-1], x[1:], out=delta[1:])
        delta[batch.first] = before - x[batch.first]
        return (x.to(self.dtype), delta.to(self.dtype)), x[batch.last]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[name + ".weight"], self._weights[name + ".bias"]
        return layer_norm(x.to(self.state_dtype), (self.shape.n_embd,), weight, bias, LAYER_NORM_EPS)


@dataclass(frozen=True, slots=True)
class Batch:
    """Where the packed sequences begin and end; chunks is None where each is one token."""

    first: Tensor
    last: Tensor
    chunks: ChunkPlan | None


def _product(x: Tensor, W: Tensor) -> Tensor:
    """``x Wᵀ`` of x ``[n, in]`` and W ``[out, in]``."""
    if len(x) > 1 or x.is_cuda or len(W) % _PARTS:
        return linear(x, W)
    # The libraries' products of a matrix and one vector leave cores idle; a batch of parts of the matrix does not.
    parts = W.view(_PARTS, -1, W.shape[1])
    return torch.bmm(parts, x.mT.expand(_PARTS, -1, 1)).view(1, -1)


def _parts(states: Sequence[State]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return [s.att_shift for s in states], [s.wkv for s in states], [s.ffn_shift for s in states]


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Stack ``[L, ...]`` of each sequence to ``[L, B, ...]``; a single one is not copied."""
    return tensors[0][:, None] if len(tensors) == 1 else torch.stack(list(tensors), dim=1)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of texts, similar lengths together, about BATCH_TOKENS tokens a group."""
    groups: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] > room:
            groups.append([])
            room = max(BATCH_TOKENS, lengths[i])
        groups[-1].append(i)
        room -= lengths[i]
    return groups
