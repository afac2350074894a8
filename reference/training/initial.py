"""Fresh weights, as RWKV-7's own training starts from.

Source of the values: BlinkDL/RWKV-LM, ``RWKV-v7/train_temp/src/model.py``; written down anew.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor

    from reference.shape import ModelShape

_LAYER = re.compile(r"blocks\.([0-9]+)\.(.*)")


def fresh(shape: ModelShape, seed: int = 0) -> dict[str, Tensor]:
    """Draw float32 weights for a new model of *shape*; equal arguments give equal bits."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in shape.tensors().items():
        layer = _LAYER.fullmatch(name)
        place = _Place(shape, size, int(layer[1]) if layer else 0, generator)
        part = layer[2] if layer else name
        tensors[name] = next(make for pattern, make in _RECIPES if re.fullmatch(pattern, part))(place)
    return tensors


@dataclass(frozen=True, slots=True)
class _Place:
    """The tensor that is drawn: of which size, in which layer."""

    shape: ModelShape
    size: tuple[int, ...]
    layer: int
    generator: Generator

    @property
    def ramp(self) -> Tensor:
        """From 0 on, over the channels, to just below 1."""
        return torch.arange(self.shape.n_embd) / self.shape.n_embd

    @property
    def line(self) -> Tensor:
        """From 0 to 1 over the channels."""
        return torch.arange(self.shape.n_embd) / (self.shape.n_embd - 1)

    @property
    def zigzag(self) -> Tensor:
        """From -1 to 1 in every head, flat in the middle."""
        N = self.shape.head_size
        x = (torch.arange(self.shape.n_embd) % N - (N - 1) / 2) / ((N - 1) / 2)
        return x * x.abs()

    @property
    def depth(self) -> float:
        """0 in the first layer, 1 in the last."""
        return self.layer / max(self.shape.n_layer - 1, 1)

    @property
    def rest(self) -> float:
        """1 in the first layer, nearly 0 in the last."""
        return 1 - self.layer / self.shape.n_layer

    def uniform(self, limit: float) -> Tensor:
        return torch.empty(self.size).uniform_(-limit, limit, generator=self.generator)

    def orthogonal(self, gain: float, long: int, short: int) -> Tensor:
        """Orthogonal rows or columns, larger where one side is much longer than the other."""
        gain *= math.sqrt(max(1.0, long / short))
        made = torch.empty(self.size)
        torch.nn.init.orthogonal_(made, gain=gain, generator=self.generator)
        return made


def _fan(factor: float) -> Callable[[_Place], Tensor]:
    return lambda p: p.uniform(factor / math.sqrt(p.shape.n_embd))


def _shift(power: float) -> Callable[[_Place], Tensor]:
    return lambda p: 1 - p.ramp ** (power * p.rest)


_RECIPES: tuple[tuple[str, Callable[[_Place], Tensor]], ...] = (
    (r"emb\.weight", lambda p: p.uniform(1e-4)),
    (r"head\.weight", lambda p: p.orthogonal(0.5, p.size[0], p.size[1])),
    (r"att\.ln_x\.weight", lambda p: torch.full(p.size, ((1 + p.layer) / p.shape.n_layer) ** 0.7)),
    (r".*ln\w+\.weight", lambda p: torch.ones(p.size)),
    (r".*ln\w+\.bias", lambda p: torch.zeros(p.size)),
    (r"att\.x_[rg]", _shift(0.2)),
    (r"att\.x_[kv]", _shift(0.7)),
    (r"att\.x_[wa]", _shift(0.9)),
    (r"ffn\.x_k", lambda p: 1 - p.ramp ** (p.rest**4)),
    (r"att\.w0", lambda p: 6 * p.line ** (1 + p.depth**0.3) - 5.5 + 2.5 * p.zigzag),
    (r"att\.a0", lambda p: 0.3 * p.zigzag + 0.4 * (p.line - 0.5) - 0.19),
    (r"att\.v0", lambda p: 0.73 - 0.4 * (p.line - 0.5)),
    (r"att\.k_k", lambda p: 0.71 - 0.1 * (p.line - 0.5)),
    (r"att\.k_a", lambda p: torch.full(p.size, 1.02)),
    (r"att\.r_k", lambda p: torch.full(p.size, -0.04)),
    (r"att\.[wavg]1", lambda p: torch.zeros(p.size)),
    (r"att\.[wavg]2", lambda p: p.orthogonal(0.1, p.size[0], p.size[1])),
    (r"att\.key\.weight", _fan(0.05)),
    (r"(att\.(receptance|value)|ffn\.key)\.weight", _fan(0.5)),
    (r"(att\.output|ffn\.value)\.weight", lambda p: torch.zeros(p.size)),
)
"""How to draw a tensor, by the first pattern that all of its name fits."""
