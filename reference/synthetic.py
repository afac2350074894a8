"""Seeded checkpoints of any size, with values in the ranges of trained ones.

Every tensor has a random stream of its own, seeded by (seed, tensor name): one tensor can be made without the others,
and adding a layer changes nothing in the layers before.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np
import torch

from reference.checkpoint import Checkpoint, Container

if TYPE_CHECKING:
    from reference.shape import ModelShape

_RECIPE = 1  # raise it when values change: it is part of the checkpoint's hash


def synthetic(shape: ModelShape, seed: int = 0) -> Checkpoint:
    """Make a checkpoint of the given sizes; equal arguments give equal bits."""
    tensors = {name: torch.from_numpy(_values(name, size, seed)) for name, size in shape.tensors().items()}
    recipe = repr((_RECIPE, astuple(shape), seed))
    return Checkpoint(
        name=f"synthetic-L{shape.n_layer}-C{shape.n_embd}-V{shape.n_vocab}-s{seed}",
        container=Container.SYNTHETIC,
        sha256=hashlib.sha256(recipe.encode()).hexdigest(),
        shape=shape,
        tensors=tensors,
    )


def _values(name: str, size: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    leaf = name.removeprefix("blocks.").partition(".")[2] if name.startswith("blocks.") else name

    def normal(std: float, mean: float = 0.0) -> np.ndarray:
        return rng.normal(mean, std, size)

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, size)

    match leaf.split("."):
        case ["emb", "weight"]:
            values = normal(0.3)
        case ["head", "weight"]:
            values = normal(3.0 / math.sqrt(size[1]))  # logits with a spread of a few nats, as trained ones have
        case ["att", "ln_x", part] | [_, part] if "ln" in leaf:
            values = normal(0.2, 1.0) if part == "weight" else normal(0.1)
        case ["att" | "ffn", mix] if mix.startswith("x_"):
            values = uniform(0.0, 1.0)
        case ["att", "w0"]:
            values = uniform(-6.5, 2.0)  # from decays next to 1 to decays next to the lower end, 0.5452
        case ["att", "a0" | "v0"]:
            values = uniform(-2.0, 2.0)
        case ["att", "k_k"]:
            values = normal(0.1, 0.85)
        case ["att", "k_a"]:
            values = normal(0.1, 1.0)
        case ["att", "r_k"]:
            values = normal(0.2)
        case ["att", low_rank] if low_rank[-1] == "1":
            values = normal(1.0 / math.sqrt(size[0]))
        case ["att", low_rank] if low_rank[-1] == "2":
            values = normal(1.0 / math.sqrt(size[0]))
        case [_, _, "weight"]:
            values = normal(1.0 / math.sqrt(size[1]))
        case _:
            raise AssertionError(f"no recipe for {name}")
    return values.astype(np.float32)
