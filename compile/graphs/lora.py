"""The LoRA pairs of time-mix: f(x A) B + bias, for the decay, the in-context rate, the value residual and the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from compile.graphs.layers import constant
from compile.graphs.named import Named

if TYPE_CHECKING:
    from compile.dims import Arrays

_INNER: dict[str, type[nn.Module]] = {"w": nn.Tanh, "a": nn.Identity, "v": nn.Identity, "g": nn.Sigmoid}
"""The activation between the halves of each pair."""


def _pair(arrays: Arrays, name: str, weight_group: int) -> tuple[Tensor, Tensor]:
    """A ``[C, rank]`` and B ``[rank, C]``, with zeros up to a rank that is a multiple of *weight_group*.

    A matrix that the groups do not divide stays F16 in the W formats. Zeros change nothing: the range of a group always
    contains 0. At 0.1B they save 7 us of 126 a layer in a decode step in W4F16.
    """
    A, B = (torch.as_tensor(arrays[name + part]).float() for part in "12")
    missing = -A.shape[1] % weight_group
    return pad(A, (0, missing)), pad(B, (0, 0, 0, missing))


class LowRank(nn.Module):
    """One pair, for T tokens.

    Where TPU-MLIR sees a product, an activation and a product, it cuts the rank in two, and matrices of half as many
    columns load at half the speed: at 0.1B that costs 6 us a layer. So an addition stands between: tanh(p) is
    2 (sigmoid(2 p) - 1/2), and sigmoid(p) is (tanh(p / 2) + 1) / 2. The factors, powers of two, are part of A and B.
    """

    def __init__(self, arrays: Arrays, att: str, kind: str, *, weight_group: int) -> None:
        """Takes ``att + kind + "1" [C, rank]``, ``"2" [rank, C]`` and, except for the gate's, ``"0" [C]``."""
        super().__init__()
        down, up = _pair(arrays, att + kind, weight_group)
        inner = _INNER[kind]
        factor, self.offset = {nn.Tanh: (2.0, -0.5), nn.Identity: (1.0, 0.0), nn.Sigmoid: (0.5, 1.0)}[inner]
        self.down, self.up = constant(factor * down), constant(factor * up)
        self.activation = {nn.Tanh: torch.sigmoid, nn.Identity: None, nn.Sigmoid: torch.tanh}[inner]
        self.inner = Named(f32=True)
        self.bias = None if kind == "g" else constant(arrays[att + kind + "0"])

    def forward(self, x: Tensor) -> Tensor:
        """X ``[1, T, C]`` -> ``[1, T, C]``."""
        p = x @ self.down
        if self.activation is not None:
            p = self.inner(self.activation(p) + self.offset)
        y: Tensor = p @ self.up
        return y if self.bias is None else y + self.bias


class LowRanks(nn.Module):
    """All pairs of a layer at once, for one token: a row for each, two products instead of eight.

    The first product takes every row through every A; what a row has got from another's A is multiplied with zero, and
    the second product is that with all B, one below the other. Rows cost the chip nothing: a product of up to 64 takes
    the time of one. At 0.1B the pairs take 18 us of a layer so, and 31 us one by one, since a matrix of 64 columns
    loads at half the speed of one of 288.
    """

    alpha: Tensor
    gamma: Tensor
    beta: Tensor

    def __init__(self, arrays: Arrays, att: str, kinds: str, *, heads: tuple[int, int], weight_group: int) -> None:
        """Takes the pairs *kinds*, such as ``"wagv"``, in the order of the rows; *heads* is their number and size."""
        super().__init__()
        pairs = [_pair(arrays, att + kind, weight_group) for kind in kinds]
        # tanh(p) is 2 sigmoid(2 p) - 1, so one sigmoid serves all: f(p) = alpha sigmoid(s p) + gamma p + beta, where s
        # is part of A. In float32, since tanh(p) near 0 would lose its digits to the 1.
        factors = {nn.Tanh: (2.0, 2.0, 0.0, -1.0), nn.Identity: (1.0, 0.0, 1.0, 0.0), nn.Sigmoid: (1.0, 1.0, 0.0, 0.0)}
        rows = torch.zeros(3, len(kinds), sum(down.shape[1] for down, _ in pairs))
        downs, start = [], 0
        for i, (kind, (down, _)) in enumerate(zip(kinds, pairs, strict=True)):
            scale, *parts = factors[_INNER[kind]]
            end = start + down.shape[1]
            rows[:, i, start:end] = torch.tensor(parts)[:, None]
            downs.append(scale * down)
            start = end
        for name, row in zip(("alpha", "gamma", "beta"), rows, strict=True):
            self.register_buffer(name, row[None])
        self.down, self.up = constant(torch.cat(downs, dim=1)), constant(torch.cat([up for _, up in pairs]))
        H, N = heads
        biases = [arrays[att + kind + "0"] if kind != "g" else torch.zeros(H * N) for kind in kinds]
        self.bias = constant(torch.stack([torch.as_tensor(bias).reshape(H, N) for bias in biases]).reshape(1, -1, N))
        self.sigmoid, self.bent, self.straight, self.both, self.inner = (Named(f32=True) for _ in range(5))
        self.outer = Named()

    def forward(self, x: Tensor) -> Tensor:
        """X ``[1, n, C]``, a row for each pair -> ``[1, n H, N]``: those of the first pair, then of the second.

        As heads, because what is done to them next then runs on 12 lanes and more, not on one for each pair.
        """
        p = x @ self.down
        bent = self.bent(self.sigmoid(torch.sigmoid(p)) * self.alpha)
        inner = self.inner(self.both(bent + self.straight(p * self.gamma)) + self.beta)
        y: Tensor = self.outer(inner @ self.up).reshape(self.bias.shape) + self.bias
        return y
