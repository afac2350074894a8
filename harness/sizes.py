"""Published sizes of RWKV-7, as synthetic checkpoints: a compile needs shapes, not training."""

from __future__ import annotations

from reference.shape import LoraRanks, ModelShape

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
