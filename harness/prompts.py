"""Tokens to feed: ordinary text where the ids have one, otherwise seeded random ids."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tokenizer.codec import Codec

if TYPE_CHECKING:
    from harness.checkpoints import Model

TEXT = (
    'The tide had gone out an hour before, and the boats lay on their sides in the mud. "Is it far?" she asked. '
    "He counted on his fingers: 3 miles, 17 gates, 1 bridge; then he shrugged.\n\n"
    "Nobody had mended the road since 1986 - not the council, not the farmers, not even old Mr. Whitlock, whose cart "
    'broke a wheel on it every spring. "Far enough," he said, "and it will be dark (or nearly) by the time we see '
    'the light." They walked on. A heron stood in the shallows & watched them pass; größer als gedacht, '
    "像一块灰色的石头。\n"
)
"""Prose with digits, quotes, line ends and a few characters of several bytes."""


def prompt(model: Model, length: int, seed: int = 0) -> list[int]:
    """Make *length* token ids of the model's vocabulary, the same for the same seed.

    With a codec that has text they are a stretch of prose that begins at a place drawn by the seed, repeated as often
    as needed; with plain ids they are drawn uniformly.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    if model.codec is Codec.PLAIN:
        return [rng.randrange(model.checkpoint.shape.n_vocab) for _ in range(length)]
    tokens = model.codec.encode(TEXT)
    start = rng.randrange(len(tokens))
    return [tokens[(start + i) % len(tokens)] for i in range(length)]
