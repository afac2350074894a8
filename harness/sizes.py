"""Published sizes of RWKV-7, as synthetic checkpoints: a compile needs shapes, not training."""

from __future__ import annotations

from harness.checkpoints import Model, codec_of
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic

SIZES = {
    "0.1B": ModelShape(
        n_layer=12,
        n_embd=768,
        head_size=64,
        n_ffn=3072,
        n_vocab=65_536,
        ranks=LoraRanks(decay=64, rate=64, value=32, gate=128),
    ),
}
"""Shapes by the name of the release."""

BY_BLOCK = {
    "2.9B": ModelShape(
        n_layer=32,
        n_embd=2560,
        head_size=64,
        n_ffn=10_240,
        n_vocab=65_536,
        ranks=LoraRanks(decay=96, rate=96, value=64, gate=320),
    ),
}
"""Those whose whole graph asks the compiler for more memory than machines have: one layer alone is compiled."""


def model_of_size(size: str) -> Model:
    """A synthetic checkpoint of a published size.

    Raises:
        KeyError: it is none of SIZES.
    """
    made = synthetic(SIZES[size])
    return Model(made, codec_of(made.sha256, made.shape.n_vocab)[0])


def size_of(shape: ModelShape) -> str:
    """The name of a published size; of another, its layers, width and vocabulary."""
    known = (name for name, published in SIZES.items() if published == shape)
    return next(known, f"L{shape.n_layer}-C{shape.n_embd}-V{shape.n_vocab}")
