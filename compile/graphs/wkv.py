"""The WKV recurrence S_t = S_{t-1} (diag(w_t) + a_t b_t^T) + v_t k_t^T, y_t = S_t r_t, as one step and as chunks.

Here a = -kappa and b = kappa * rate. Vectors are rows ``[H, T, N]``, S is ``[H, N, N]`` with values as rows and keys as
columns; both modules return y ``[H, T, N]`` and the new S.

The state is carried in float32 in every quantisation: a decay of 0.999 rounded to float16 is off by up to 2.4e-4, token
after token in the same direction. Measured on the simulator, 64 decode steps of a synthetic model (2 layers, C = 128)
from a random state: state NMSE 3.2e-5 in float16, 3.2e-6 with the state's update in float32, for 1 % of the cycles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compile.graphs.layers import LANES
from compile.graphs.named import Named

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 16
"""Tokens that share a centre for the exponents of their decays: inside a block these span at most 0.5452^-16, and
centred on its middle 0.5452^±8 = 128^±1, which float16 holds with room for the activations that they multiply."""

_LARGEST_EXPONENT = 5.0  # above 8 times 0.6065, what a block needs; keeps what is masked later from being infinite


class WkvStep(nn.Module):
    """One token: T = 1."""

    eye: Tensor

    def __init__(self, N: int) -> None:
        """N is the head size."""
        super().__init__()
        self.register_buffer("eye", torch.eye(N)[None])
        names = (Named(f32=True) for _ in range(7))
        self.read, self.Sa, self.kept, self.removed, self.updated, self.written, self.state = names

    def forward(
        self, r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, S: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The recurrence as written, with the decay w itself.

        A column is made by a product with rows and a sum over them: a transpose would be a permute of 8 us. S a is
        summed like that in float32, on the state as it was loaded: as a product of matrices it needs the state once
        more, in float16, 7 us a layer at 0.1B.
        """
        v_column = (self.eye * v).sum(dim=2, keepdim=True)
        Sa = self.Sa(self.read(S * a).sum(dim=2, keepdim=True))
        S = self.updated(self.kept(S * w) + self.removed(Sa * b))
        S = self.state(S + self.written(v_column * k))
        return r @ S.transpose(1, 2), S


class WkvChunks(nn.Module):
    """T tokens, in chunks of 64, the chip's lanes, one after the other; inside a chunk all positions at once."""

    def __init__(self, T: int, N: int) -> None:
        """Any T; the last chunk takes what is left over."""
        super().__init__()
        sizes = [LANES] * (T // LANES) + [T % LANES] * (T % LANES > 0)
        self.cuts = [(sum(sizes[:i]), size) for i, size in enumerate(sizes)]
        self.chunks = nn.ModuleDict({str(n): WkvChunk(n, N) for n in set(sizes)})

    def forward(
        self, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, S: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All T tokens, with the decay's logarithm; the state passes from chunk to chunk."""
        ys = []
        for start, n in self.cuts:
            rows = (q[:, start : start + n] for q in (r, log_w, k, v, a, b))
            y, S = self.chunks[str(n)](*rows, S)
            ys.append(y)
        return torch.cat(ys, dim=1) if len(ys) > 1 else ys[0], S


class WkvChunk(nn.Module):
    """Up to 64 tokens at once.

    With L_t = sum_{i <= t} log w_i, rows scaled where they are read, and S the state before:

        A_t = a_t e^(L_t - log w_t),  R_t = r_t e^(L_t),  b_s and k_s as they are
        P(x, z)_ts = sum_n x_t z_s e^(L_t - L_s), for s < t with x = a / w, for s <= t with x = r
        U = (I - P(a, b))^-1 (A S^T + P(a, k) V)
        Y = R S^T + [P(r, b) P(r, k)] [U; V]
        S' = S diag(e^(L_n)) + [U; V]^T [b e^(L_n - L); k e^(L_n - L)]

    Nothing that stays is ever larger than what it stands for: every decay that is multiplied with is at most 1, except
    inside a block of 16, where it is taken relative to the block's middle. What is removed (U, b) and what is written
    (V, k) nearly cancel; stacked into one product they are added in its float32 accumulator, not after rounding.
    """

    through: Tensor
    to_end: Tensor
    to_centre: Tensor
    bounds: Tensor
    eye: Tensor
    eye_of_values: Tensor

    def __init__(self, n: int, N: int) -> None:
        """For n tokens and heads of size N."""
        super().__init__()
        self.n = n
        through = torch.tril(torch.ones(n, n))  # row t: sum over the tokens up to t
        before = torch.tril(torch.ones(n, n), -1)
        block = torch.arange(n) // BLOCK
        self.blocks = int(block[-1]) + 1
        centres = through[[min(BLOCK * i + BLOCK // 2 - 1, n - 1) for i in range(self.blocks)]]
        self.register_buffer("through", through[None])
        self.register_buffer("to_end", (through[-1:] - through)[None])
        self.register_buffer("to_centre", (through - centres[block])[None])
        for i, centre in enumerate(centres):
            self.register_buffer(f"from_centre_{i}", (centre - through)[None])
            # As wide as what it multiplies: a column of ones loads element by element, 2.4 us and not 0.6.
            self.register_buffer(f"block_{i}", (block == i).float()[None, :, None].expand(1, n, N).repeat(1, 2, 1))
        kept = torch.cat([torch.cat([before, before], dim=1), torch.cat([through, through], dim=1)])[None]
        self.register_buffer("bounds", kept * torch.finfo(torch.float32).max)
        self.register_buffer("eye", torch.eye(n)[None])
        self.register_buffer("eye_of_values", torch.eye(N)[None])
        self.levels = []
        half = 1
        while half < n:
            self.levels.append(half)
            self.register_buffer(f"join_{half}", _join_mask(n, half)[None])
            half *= 2
        self.start, self.end, self.kept, self.state = (Named(f32=True) for _ in range(4))

    def forward(
        self, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, S: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Vectors ``[H, n, N]``, S ``[H, N, N]``."""
        # A constant that differs for each head is loaded for each head, 98 KB; multiplied with a one, it is loaded once
        # and spread on the chip.
        one = _one(log_w)
        # The state is loaded in float32 alone: a product takes it in float16, and cast at the graph's entry it would be
        # written out and loaded once more, 7 us a layer at 0.1B. The cast of this product cannot be moved there.
        S = self.start(S * one)

        def summed(name: str) -> Tensor:
            return self.get_buffer(name) * one @ log_w

        from_start = torch.exp(summed("through"))
        readers = torch.cat([a * torch.exp(-log_w), r], dim=1)
        keys = torch.cat([b, k], dim=1)
        P = self.bounded(self.products(readers, keys, summed))
        of_S = readers * _twice(from_start) @ S.transpose(1, 2)
        n = self.n
        U = self.inverse(P[:, :n, :n]) @ (of_S[:, :n] + P[:, :n, n:] @ v)
        values = torch.cat([U, v], dim=1)
        Y = of_S[:, n:] + P[:, n:] @ values
        # I X^T is a product of 0.4 us; X^T on the left of a product would be a permute of 8.
        change = self.eye_of_values * one @ values.transpose(1, 2) @ (keys * _twice(torch.exp(summed("to_end"))))
        return Y, self.state(self.kept(S * self.end(from_start[:, -1:])) + change)

    def products(self, readers: Tensor, keys: Tensor, summed: Callable[[str], Tensor]) -> Tensor:
        """All P at once, ``[H, 2n, 2n]``: a and r by b and k.

        Block by block of rows: relative to the block's centre, earlier keys have decayed, and later ones are removed by
        the mask. A product of 16 rows takes the time of one of 64, so the rows of other blocks are zeros.
        """
        readers = readers * _twice(torch.exp(summed("to_centre")))
        parts = []
        for i in range(self.blocks):
            exponents = summed(f"from_centre_{i}")
            if self.blocks > 1:
                exponents = torch.clamp(exponents, max=_LARGEST_EXPONENT)
            own = readers * self.get_buffer(f"block_{i}") if self.blocks > 1 else readers
            parts.append(own @ (keys * _twice(torch.exp(exponents))).transpose(1, 2))
        return sum(parts[1:], start=parts[0])

    def bounded(self, P: Tensor) -> Tensor:
        """Zeros where a key is not before its reader.

        There a product may have overflowed in float16, and inf * 0 is NaN; so it is bounded, by 0 where it is removed.
        """
        return torch.maximum(torch.minimum(P, self.bounds), -self.bounds)

    def inverse(self, M: Tensor) -> Tensor:
        """(I - M)^-1 of strictly lower triangular M ``[H, n, n]``, by joining inverted diagonal blocks pairwise.

        [[A, 0], [-C, B]]^-1 = [[A^-1, 0], [B^-1 C A^-1, B^-1]]: every intermediate is part of the result. (The product
        of squares (I + M)(I + M^2)(I + M^4)... is exact on paper and diverges in float32.)
        """
        X = self.eye + M * self.get_buffer("join_1") if self.levels else self.eye + M
        for half in self.levels[1:]:
            X = X + X @ (M * self.get_buffer(f"join_{half}")) @ X
        return X


def _one(x: Tensor) -> Tensor:
    """Ones ``[H, 1, 1]`` of which the compiler cannot know that they are."""
    return torch.clamp(x[:, :1, :1], 1.0, 1.0)


def _twice(x: Tensor) -> Tensor:
    """For both halves of a stack."""
    return torch.cat([x, x], dim=1)


def _join_mask(n: int, half: int) -> Tensor:
    """Ones in the lower left block of every diagonal block of size 2 * half."""
    index = torch.arange(n)
    same_pair = index[:, None] // (2 * half) == index[None, :] // (2 * half)
    lower_left = (index[:, None] // half % 2 == 1) & (index[None, :] // half % 2 == 0)
    return (same_pair & lower_left).float()
