"""A checkpoint made harder, by what a trained one seldom has and a compiler may get wrong where it occurs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.checkpoints import Model

if TYPE_CHECKING:
    from torch import Tensor

    from reference.checkpoint import Checkpoint

VERSION = 1
"""Raised when values change: it is part of the checkpoint's hash."""

_STRONG, _WEAK = 4.0, -4.0
"""Added before a sigmoid: 0.98 and 0.02 of its range."""
_OUTLIER = 4.0


def hard(model: Model) -> Model:
    """The same model with extremes planted in every layer. It answers nothing any more, and has no tasks.

    - The decay of even channels is next to the strongest that RWKV-7 has, 0.5452 a token; of odd ones, next to none.
    - The in-context rates of the first half of each head's channels are next to 1, those of the others as they were.
    - An entry in each matrix of the channel-mix is four times the largest beside it.
    - A channel of what enters the time-mix is four times as large as the others, by its layer norm.
    """
    checkpoint = model.checkpoint
    tensors = dict(checkpoint.tensors)
    for i in range(checkpoint.shape.n_layer):
        _plant(tensors, f"blocks.{i}.", checkpoint.shape.head_size)
    sha256 = hashlib.sha256(f"hard {VERSION} {checkpoint.sha256}".encode()).hexdigest()
    planted = replace(checkpoint, name=f"{checkpoint.name}-hard", sha256=sha256, tensors=tensors)
    return Model(planted, model.codec)


def _plant(tensors: dict[str, Tensor], block: str, head_size: int) -> None:
    def changed(name: str) -> Tensor:
        tensors[block + name] = tensors[block + name].clone()
        return tensors[block + name]

    w0, a0 = changed("att.w0"), changed("att.a0")
    w0.view(-1)[0::2] += _STRONG
    w0.view(-1)[1::2] += _WEAK
    a0.view(-1, head_size)[:, : head_size // 2] += _STRONG
    for matrix in (changed("ffn.key.weight"), changed("ffn.value.weight")):
        matrix[1, 1] = _OUTLIER * matrix[1].abs().max()
    changed("ln1.weight").view(-1)[2] *= _OUTLIER


def planted_tensors(checkpoint: Checkpoint, like: Checkpoint) -> list[str]:
    """Names of the tensors in which two checkpoints of one shape differ."""
    return [name for name, tensor in checkpoint.tensors.items() if not tensor.equal(like.tensors[name])]
