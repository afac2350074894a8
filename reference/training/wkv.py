"""The WKV recurrence of whole batches, for autograd: every operation out of place, one product a chunk in the loop.

The formulas inside a chunk, and their names, are those of :mod:`reference.wkv`. There U and Y are linear in the state
before the chunk, ``U = F_u S_0ᵀ + G_u`` and ``Y = F_y S_0ᵀ + G_y``, so that a whole chunk acts on the state as

    S_T = S_0 A + D,   A = (I + F_uᵀ B̃) diag(P_T),   D = (G_uᵀ B̃ + Vᵀ K̃) diag(P_T)

A and D of all chunks come out of a few batched products; only ``S ← S A + D`` waits for the chunk before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 16
"""Tokens a chunk: w > 0.5452, so that 1 / P_t stays below 1.7e4, far from the limits of float32."""


def wkv(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Run the recurrence over B sequences of T tokens each.

    Args:
        r: ``[B, T, H, N]``, in the dtype to compute in, as all that follow.
        log_w: ``[B, T, H, N]``, the logarithm of the decays, at most 0.
        k: ``[B, T, H, N]``, the write keys.
        v: ``[B, T, H, N]``.
        kappa: ``[B, T, H, N]``, the removal keys.
        a: ``[B, T, H, N]``, the in-context rates.
        S: ``[B, H, N, N]``, rows are values, columns are keys: the state before the first token.

    Returns:
        y ``[B, T, H, N]`` and the state ``[B, H, N, N]`` after the last token.
    """
    B, T, H, N = r.shape
    n = -(-T // CHUNK)

    def chunks(x: Tensor) -> Tensor:
        """``[n B H, CHUNK, N]``; zeros behind the end leave the state alone: no decay, no removal, no write."""
        x = pad(x, (0, 0, 0, 0, 0, n * CHUNK - T))
        return x.view(B, n, CHUNK, H, N).permute(1, 0, 3, 2, 4).reshape(n * B * H, CHUNK, N)

    r, log_w, k, v, kappa, a = (chunks(x) for x in (r, log_w, k, v, kappa, a))
    log_P = log_w.cumsum(dim=1)
    P, inverse_P, last_P = log_P.exp(), (-log_P).exp(), log_P[:, -1:].exp()
    removers = kappa * a * inverse_P  # B̃
    writers = k * inverse_P  # K̃
    kappa = kappa * (log_P - log_w).exp()  # κ̃
    readers = r * P  # R̃

    eye = torch.eye(CHUNK, dtype=r.dtype, device=r.device)
    lower = (kappa @ removers.mT).tril(-1)
    inverse = torch.linalg.solve_triangular(lower + eye, -eye.expand_as(lower), upper=False, unitriangular=True)
    F_u = inverse @ kappa
    G_u = (inverse @ (kappa @ writers.mT).tril(-1)) @ v
    removed_reads = (readers @ removers.mT).tril()
    F_y = readers + removed_reads @ F_u
    G_y = removed_reads @ G_u + (readers @ writers.mT).tril() @ v

    A = (torch.eye(N, dtype=r.dtype, device=r.device) + F_u.mT @ removers) * last_P
    D = (G_u.mT @ removers + v.mT @ writers) * last_P
    state = S.reshape(B * H, N, N)
    before = []
    for A_chunk, D_chunk in zip(A.view(n, B * H, N, N), D.view(n, B * H, N, N), strict=True):
        before.append(state)
        state = torch.baddbmm(D_chunk, state, A_chunk)

    y = torch.baddbmm(G_y, F_y, torch.cat(before).mT)
    y = y.view(n, B, H, CHUNK, N).permute(1, 0, 3, 2, 4).reshape(B, n * CHUNK, H, N)
    return y[:, :T], state.view(B, H, N, N)
