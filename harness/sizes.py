"""Published sizes of RWKV-7, as synthetic checkpoints: a compile needs shapes, not training."""

from __future__ import annotations

from harness.checkpoints import Model, codec_of
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic


def _shape(n_layer: int, n_embd: int, ranks: LoraRanks) -> ModelShape:
    return ModelShape(n_layer=n_layer, n_embd=n_embd, head_size=64, n_ffn=4 * n_embd, n_vocab=65_536, ranks=ranks)


SIZES = {"0.1B": _shape(12, 768, LoraRanks(decay=64, rate=64, value=32, gate=128))}
"""Shapes by the name of the release."""

BY_BLOCK = {
    "0.4B": _shape(24, 1024, LoraRanks(decay=64, rate=64, value=32, gate=128)),
    "1.5B": _shape(24, 2048, LoraRanks(decay=96, rate=96, value=64, gate=256)),
    "2.9B": _shape(32, 2560, LoraRanks(decay=96, rate=96, value=64, gate=320)),
    "7.2B": _shape(32, 4096, LoraRanks(decay=128, rate=128, value=96, gate=480)),
}
"""Those whose whole graph asks the compiler for more memory than usual machines have: they are compiled in parts.

Published checkpoints may differ in the ranks, which are read from the file where there is one.
"""


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
