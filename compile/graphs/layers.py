"""The layers that every graph is made of: layer norm, matrix product, token shift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from compile.graphs.named import Named

if TYPE_CHECKING:
    from compile.dims import Arrays

LAYER_NORM_EPS = 1e-5

LANES = 64
"""Rows of a ``[1, T, C]`` tensor that the chip works on at once, each in a memory of its own."""


def constant(array: object) -> nn.Parameter:
    """A float32 parameter that nothing trains."""
    return nn.Parameter(torch.as_tensor(array).to(torch.float32).clone(), requires_grad=False)


class LayerNorm(nn.Module):
    """Normalise the last axis, then scale and shift; in float32."""

    def __init__(self, arrays: Arrays, name: str) -> None:
        """Takes ``name.weight`` and ``name.bias``, both ``[C]``."""
        super().__init__()
        self.weight = constant(arrays[name + ".weight"])
        self.bias = constant(arrays[name + ".bias"])
        self.normed = Named(f32=True)

    def forward(self, x: Tensor) -> Tensor:
        """Any ``[..., C]``."""
        y: Tensor = self.normed(layer_norm(x, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS))
        return y


class Linear(nn.Module):
    """A matrix product without bias; the matrix is stored transposed, as the compiler wants it."""

    def __init__(self, arrays: Arrays, name: str) -> None:
        """Takes ``name.weight [out, in]``."""
        super().__init__()
        self.weight = constant(arrays[name + ".weight"].T)

    def forward(self, x: Tensor) -> Tensor:
        """X ``[1, T, in]`` -> ``[1, T, out]``."""
        return x @ self.weight


class TokenShift(nn.Module):
    """What each token is mixed with: the difference to the one before; and what the next call begins with.

    In float32, on what the layer norm gives in float32: trained weights mu reach 9, and then three roundings to float16
    of terms that nearly cancel cost more accuracy than all else in the layer. Measured on a trained checkpoint (2
    layers, C = 256), 64 decode steps: state NMSE 1.0e-5 with the mix in float16, 5.2e-6 in float32, for 0.5 % fewer
    cycles, because no cast is left between the two.
    """

    def __init__(self) -> None:
        """In float32 throughout."""
        super().__init__()
        self.rest, self.before, self.delta, self.last = (Named(f32=True) for _ in range(4))

    def forward(self, x: Tensor, prev: Tensor) -> tuple[Tensor, Tensor]:
        """X ``[1, T, C]``, prev ``[1, 1, C]`` -> the token before minus x ``[1, T, C]``, the last x ``[1, 1, C]``.

        A row that moves by one lane must be copied alone. Put together from pieces of 64 rows, 256 tokens of width 768
        shift in 12.3 us; as one tensor, moved down by a row, in 49 us.
        """
        T = x.shape[1]
        if T == 1:
            return self.delta(prev - x), x
        pieces = []
        for start in range(0, T, LANES):
            end = min(start + LANES, T)
            pieces.append(self.rest(x[:, start - 1 : start]) if start else prev)
            if end - start > 1:
                pieces.append(self.rest(x[:, start : end - 1]))
        return self.delta(self.before(torch.cat(pieces, dim=1)) - x), self.last(x[:, -1:])


class Mix(nn.Module):
    """Mix each token with the one before, in one way or several: x + (before - x) mu."""

    def __init__(self, arrays: Arrays, names: list[str]) -> None:
        """Takes *names*, each ``[C]``."""
        super().__init__()
        C = arrays[names[0]].size
        self.mu = constant(torch.cat([torch.as_tensor(arrays[name]).reshape(1, 1, C) for name in names], dim=1))
        self.scaled, self.mixed = Named(f32=True), Named(f32=True)

    def forward(self, x: Tensor, delta: Tensor) -> Tensor:
        """X and delta = prev - x, ``[1, T, C]`` -> the same; or for one token in n ways ``[1, n, C]``."""
        y: Tensor = self.mixed(x + self.scaled(delta * self.mu))
        return y
