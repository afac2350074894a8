"""Checkpoints that are judged, and targets that are right: those must pass every check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import torch

from compile.spec import GraphKind, GraphSpec, Quantization
from harness.cases import Case
from harness.checkpoints import Model, open_model
from reference.emulated import Emulated
from reference.fast import Fast
from reference.naive import Naive
from reference.precision import Precision
from reference.synthetic import synthetic
from tests.detection.formulas import Formulas
from tokenizer.codec import Codec

if TYPE_CHECKING:
    from collections.abc import Callable

    from reference.checkpoint import Checkpoint
    from tests.detection.engine import Computes


def _zero_key() -> Model:
    """The shipped model with a head whose removal key is zero, as a pruned or padded head has it."""
    shipped = model("shipped").checkpoint
    tensors = dict(shipped.tensors)
    tensors["blocks.0.att.k_k"] = tensors["blocks.0.att.k_k"].clone()
    tensors["blocks.0.att.k_k"][: shipped.shape.head_size] = 0
    return Model(replace(shipped, tensors=tensors), Codec.WORLD_BYTES)


def _small_values() -> Model:
    """The shipped model with values a hundredth of its own: as good as the same, but for the group norm's epsilon."""
    shipped = model("shipped").checkpoint
    tensors = {name: 0.01 * t if name.endswith("att.value.weight") else t for name, t in shipped.tensors.items()}
    return Model(replace(shipped, tensors=tensors), Codec.WORLD_BYTES)


def _three_layers() -> Model:
    shape = replace(model("shipped").checkpoint.shape, n_layer=3)
    return Model(synthetic(shape), Codec.WORLD_BYTES)


MODELS: dict[str, Callable[[], Model]] = {
    "shipped": lambda: open_model(None),
    "random ids": lambda: replace(model("shipped"), codec=Codec.PLAIN),
    "zero key": _zero_key,
    "small values": _small_values,
    "three layers": _three_layers,
    "synthetic": lambda: Model(synthetic(model("shipped").checkpoint.shape), Codec.PLAIN),
}
"""What is judged, by name: the checkpoint that ships, and those that show what it does not."""


@cache
def model(name: str) -> Model:
    """One of MODELS, made once."""
    return MODELS[name]()


def cases(quantization: Quantization = Quantization.F16, T: int = 16) -> tuple[Case, ...]:
    """Decode, and both kinds of prefill."""
    specs = [GraphSpec(kind=kind, T=1 if kind is GraphKind.DECODE else T) for kind in GraphKind]
    return tuple(Case(graph=spec, quantization=quantization) for spec in specs)


@dataclass(frozen=True, slots=True)
class Good:
    """A right target.

    Attributes:
        name: what computes, and how it is fed.
        computes: makes it of a checkpoint.
        model: one of MODELS.
        T: tokens of a chunk.
        precision: whose caps and oracle judge it.
    """

    name: str
    computes: Callable[[Checkpoint], Computes]
    model: str = "shipped"
    T: int = 16
    precision: Quantization = Quantization.F16


def _formulas(precision: Precision | None = Precision.F16) -> Callable[[Checkpoint], Formulas]:
    return lambda checkpoint: Formulas(checkpoint, precision)


def _emulated(checkpoint: Checkpoint) -> Emulated:
    return Emulated(checkpoint, Precision.F16)


GOOD = (
    Good("naive recurrence, float64", Naive),
    Good("chunk-parallel, float64", lambda checkpoint: Fast(checkpoint, torch.float64), T=32),
    Good("chunk-parallel, float32", Fast),
    Good("chunk-parallel, float32, long chunks", Fast, T=128),
    Good("recurrence, float32", _formulas(None)),
    Good("recurrence, rounded as F16", _formulas()),
    Good("recurrence, rounded as F16, chunks of 2", _formulas(), T=2),
    Good("recurrence, rounded as F16, chunks of 64", _formulas(), T=64),
    Good("chunk-parallel, rounded as F16", _emulated),
    Good("chunk-parallel, rounded as F16, chunks of 96", _emulated, T=96),
    Good("random ids, rounded as F16", _formulas(), "random ids"),
    Good("a zero key, rounded as F16", _formulas(), "zero key"),
    Good("small values, rounded as F16", _formulas(), "small values"),
    Good("three layers, synthetic, rounded as F16", _formulas(), "three layers"),
    Good("synthetic, random ids, rounded as F16", _formulas(), "synthetic"),
    Good("8-bit weights", _formulas(Precision.W8F16), precision=Quantization.W8F16),
    Good("4-bit weights", _formulas(Precision.W4F16), precision=Quantization.W4F16),
)
"""Targets that must pass."""
