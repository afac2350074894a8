"""Seeded checkpoints of any size, with values in the ranges of trained ones.

Every tensor has a random stream of its own, seeded by (seed, tensor name): one tensor can be made without the others,
and adding a layer changes nothing in the layers before.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np
import torch

from reference.checkpoint import Checkpoint, Container

if TYPE_CHECKING:
    from collections.abc import Callable

    from reference.shape import ModelShape

    _Recipe = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

VERSION = 1
"""Raised when values change: it is part of the checkpoint's hash."""


def synthetic(shape: ModelShape, seed: int = 0) -> Checkpoint:
    """Make a checkpoint of the given sizes; equal arguments give equal bits."""
    tensors = {name: torch.from_numpy(_values(name, size, seed)) for name, size in shape.tensors().items()}
    recipe = repr((VERSION, astuple(shape), seed))
    return Checkpoint(
        name=f"synthetic-L{shape.n_layer}-C{shape.n_embd}-V{shape.n_vocab}-s{seed}",
        container=Container.SYNTHETIC,
        sha256=hashlib.sha256(recipe.encode()).hexdigest(),
        shape=shape,
        tensors=tensors,
    )


def synthetic_block(shape: ModelShape, i: int, seed: int = 0) -> Checkpoint:
    """Layer *i* of the same checkpoint and no other tensor of it: nothing that computes a whole model takes this."""
    mine = {name: size for name, size in shape.tensors().items() if name.startswith(f"blocks.{i}.")}
    recipe = repr((VERSION, astuple(shape), seed, i))
    return Checkpoint(
        name=f"synthetic-L{shape.n_layer}-C{shape.n_embd}-V{shape.n_vocab}-s{seed}-block{i}",
        container=Container.SYNTHETIC,
        sha256=hashlib.sha256(recipe.encode()).hexdigest(),
        shape=shape,
        tensors={name: torch.from_numpy(_values(name, size, seed)) for name, size in mine.items()},
    )


def synthetic_tensor(shape: ModelShape, seed: int, name: str) -> np.ndarray:
    """One tensor of the same checkpoint, float32.

    Raises:
        KeyError: such a model has no tensor of that name.
    """
    return _values(name, shape.tensors()[name], seed)


def _values(name: str, size: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    make = next(make for pattern, make in _RECIPES if re.search(pattern, name))
    return make(rng, size).astype(np.float32)


def _normal(std: float, mean: float = 0.0) -> _Recipe:
    return lambda rng, size: rng.normal(mean, std, size)


def _uniform(low: float, high: float) -> _Recipe:
    return lambda rng, size: rng.uniform(low, high, size)


def _matrix(axis: int, gain: float = 1.0) -> _Recipe:
    """Keeps the scale of what it is applied to; *axis* is the one that is summed over."""
    return lambda rng, size: rng.normal(0.0, gain / math.sqrt(size[axis]), size)


_RECIPES: tuple[tuple[str, _Recipe], ...] = (
    (r"^emb\.weight$", _normal(0.3)),
    (r"^head\.weight$", _matrix(1, gain=3.0)),  # logits with a spread of a few nats, as trained ones have
    (r"\bln_?\w+\.weight$", _normal(0.2, mean=1.0)),
    (r"\bln_?\w+\.bias$", _normal(0.1)),
    (r"\.x_\w$", _uniform(0.0, 1.0)),
    (r"\.w0$", _uniform(-6.5, 2.0)),  # from decays next to 1 to decays next to the lower end, 0.5452
    (r"\.[av]0$", _uniform(-2.0, 2.0)),
    (r"\.k_k$", _normal(0.1, mean=0.85)),
    (r"\.k_a$", _normal(0.1, mean=1.0)),
    (r"\.r_k$", _normal(0.2)),
    (r"\.[wavg][12]$", _matrix(0)),
    (r"\.(receptance|key|value|output)\.weight$", _matrix(1)),
)
"""How to draw a tensor, by the first pattern that its name matches."""
