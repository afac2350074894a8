"""The WKV recurrence in float32 or float64, chunk-parallel: matrix products inside a chunk, a loop over chunks only.

Per head, with decay ``w_t``, removal key ``κ_t`` and in-context rate ``a_t`` (all ``[N]``), S is ``[N value, N key]``:

    S_t = S_{t-1} (diag(w_t) - κ_t b_tᵀ) + v_t k_tᵀ,   y_t = S_t r_t,   b_t = κ_t ⊙ a_t

With ``P_t`` the product of the decays from the chunk's start on, ``κ̃_t = P_{t-1} κ_t``, ``b̃_t = b_t / P_t``,
``k̃_t = k_t / P_t``, ``r̃_t = P_t r_t``, all as rows of matrices ``[T, N]``, a chunk that starts from ``S_0`` gives

    U = -(I + tril₋₁(κ̃ B̃ᵀ))⁻¹ (κ̃ S_0ᵀ + tril₋₁(κ̃ K̃ᵀ) V)
    Y = R̃ S_0ᵀ + tril(R̃ B̃ᵀ) U + tril(R̃ K̃ᵀ) V
    S_T = (S_0 + Uᵀ B̃ + Vᵀ K̃) diag(P_T)

Only the terms with ``S_0`` wait for the chunk before. The form is that of generalised delta rules (Yang et al.,
"Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024). The triangular matrix is inverted
by substitution, which stays exact to rounding however often a token repeats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

CHUNK = 16
"""Tokens a chunk: w > 0.5452, so that 1 / P_t stays below 1.7e4, far from the limits of float32."""


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Where the tokens of several sequences, packed one behind the other, stand in chunks.

    The longest sequence comes first inside each step, so that those that have ended drop off at the end.

    Attributes:
        rows: ``[n_chunks, CHUNK]``: the packed row of each place; places behind a sequence's end hold row 0.
        vacant: ``[n]``: the flat places behind a sequence's end.
        places: ``[ΣT]``: the flat place of each packed row: the inverse of *rows*.
        active: how many sequences take part in each step of the loop over chunks.
        order: ``[B]``: the sequences from the longest to the shortest.
    """

    rows: Tensor
    vacant: Tensor
    places: Tensor
    active: tuple[int, ...]
    order: Tensor


def plan(lengths: Sequence[int], device: torch.device) -> ChunkPlan:
    """Cut sequences of the given lengths (each at least 1) into chunks."""
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    rows, active = [], []
    for first in range(0, lengths[order[0]], CHUNK):
        running = [b for b in order if lengths[b] > first]
        active.append(len(running))
        for b in running:
            here = range(starts[b] + first, starts[b] + min(first + CHUNK, lengths[b]))
            rows.append([*here, *[-1] * (CHUNK - len(here))])
    table = torch.tensor(rows)
    flat = table.flatten()
    taken = flat >= 0
    places = torch.empty(starts[-1], dtype=torch.long)
    places[flat[taken]] = taken.nonzero()[:, 0]
    return ChunkPlan(
        rows=table.clamp(min=0).to(device),
        vacant=(~taken).nonzero()[:, 0].to(device),
        places=places.to(device),
        active=tuple(active),
        order=torch.tensor(order, device=device),
    )


def wkv_chunks(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, S: Tensor, chunks: ChunkPlan
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over packed sequences.

    Args:
        r: ``[ΣT, H, N]``, in the dtype to compute in, as all that follow.
        log_w: ``[ΣT, H, N]``, the logarithm of the decays.
        k: ``[ΣT, H, N]``, the write keys.
        v: ``[ΣT, H, N]``.
        kappa: ``[ΣT, H, N]``, the removal keys.
        a: ``[ΣT, H, N]``, the in-context rates.
        S: ``[B, H, N, N]``, the state of each sequence before its first token; not changed.
        chunks: made by :func:`plan` from the lengths of the B sequences.

    Returns:
        y ``[ΣT, H, N]`` and the states ``[B, H, N, N]`` after the last token of each sequence.
    """
    H, N = r.shape[1:]
    n, T = chunks.rows.shape
    # Head-major chunks [n H, T, N], gathered in one go.
    heads = torch.arange(H, device=r.device)
    rows = (chunks.rows[:, None, :] * H + heads[:, None]).flatten()
    vacant = (chunks.vacant[:, None] // T * H + heads) * T + chunks.vacant[:, None] % T

    def gather(x: Tensor) -> Tensor:
        return x.reshape(-1, N).index_select(0, rows).view(n * H, T, N)

    def gather_or_zero(x: Tensor) -> Tensor:
        """A vacant place must leave the state alone: no decay, nothing removed, nothing written."""
        x = gather(x)
        x.view(-1, N).index_fill_(0, vacant.flatten(), 0)
        return x

    ones = torch.ones(T, T, dtype=r.dtype, device=r.device).tril()
    P = torch.matmul(ones, gather_or_zero(log_w)).exp_()
    inverse_P = P.reciprocal()
    kappa = gather_or_zero(kappa)
    removers = gather(a).mul_(kappa).mul_(inverse_P)  # B̃
    kappa[:, 1:] *= P[:, :-1]  # κ̃
    writers = gather_or_zero(k).mul_(inverse_P)  # K̃
    v = gather(v)
    last_P = P[:, -1:].clone()
    readers = gather(r).mul_(P)  # R̃

    # U and Y are linear in S_0ᵀ and V: all that stands before those two is computed for all chunks at once.
    inverse = torch.linalg.solve_triangular(
        torch.bmm(kappa, removers.mT).tril_(-1),
        torch.eye(T, dtype=r.dtype, device=r.device).neg().expand(n * H, T, T),
        upper=False,
        unitriangular=True,
    )
    from_kappa = torch.cat([inverse, torch.bmm(readers, removers.mT).tril_() @ inverse], dim=1)
    from_v = torch.bmm(from_kappa, torch.bmm(kappa, writers.mT).tril_(-1))
    from_v[:, T:] += torch.bmm(readers, writers.mT).tril_()
    from_state = torch.bmm(from_kappa, kappa)
    from_state[:, T:] += readers
    u_and_y = torch.bmm(from_v, v)

    # The loop over chunks: [U; Y] += from_state S_0ᵀ, then S_T.
    state = S[chunks.order].flatten(0, 1)
    first = 0
    for active in chunks.active:
        here, S = slice(first, first + active * H), state[: active * H]
        u_and_y[here].baddbmm_(from_state[here], S.mT)
        S.baddbmm_(u_and_y[here, :T].mT, removers[here])
        S.baddbmm_(v[here].mT, writers[here])
        S.mul_(last_P[here])
        first += active * H

    after = torch.empty_like(state).view(-1, H, N, N)
    after[chunks.order] = state.view(-1, H, N, N)
    y = u_and_y[:, T:].view(n, H, T, N).transpose(1, 2).reshape(n * T, H, N)
    return y.index_select(0, chunks.places), after


def wkv_step(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of each of B sequences: arguments ``[B, H, N]``, S ``[B, H, N, N]`` -> y ``[B, H, N]``, the new S."""
    B, H, N = r.shape
    r, log_w, k, v, kappa, a = (x.reshape(B * H, N, 1) for x in (r, log_w, k, v, kappa, a))
    S = S.flatten(0, 1)
    removed = torch.bmm(S, kappa)
    S = (S * log_w.exp().mT).addcmul_(removed, (kappa * a).mT, value=-1).addcmul_(v, k.mT)
    return torch.bmm(S, r).view(B, H, N), S.view(B, H, N, N)
