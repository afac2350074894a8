"""What a trained model can do: bits per byte of text, exact answers to generated exercises."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np

from harness.metrics import kl_divergence
from harness.training.sources import question
from reference.training.documents import END_OF_TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reference.fast import Fast
    from reference.state import State
    from reference.training.documents import Question
    from reference.training.tasks import Kind
    from tokenizer.codec import Codec


def bits_per_byte(model: Fast, documents: Sequence[Sequence[int]], codec: Codec) -> float:
    """Cross-entropy of whole documents behind an end of text, in bits, over the bytes that they stand for."""
    scored = model.score([([END_OF_TEXT], tokens) for tokens in documents])
    nats = -sum(float(one.log_probs.sum()) for one in scored)
    return nats / math.log(2) / sum(len(codec.decode_bytes(tokens)) for tokens in documents)


def kl_mean_nats(model: Fast, other: Fast, documents: Sequence[Sequence[int]]) -> float:
    """Mean KL divergence of *other*'s next-token distribution from *model*'s over the tokens of documents, in nats."""
    kl = [
        kl_divergence(model.forward(tokens)[0].numpy(), other.forward(tokens)[0].numpy())
        for tokens in ([END_OF_TEXT, *document] for document in documents)
    ]
    return float(np.concatenate(kl).mean())


def questions(kind: Kind, length: int, n: int, codec: Codec, seed: int = 0) -> list[Question]:
    """*n* exercises, the same for the same seed; trainings draw theirs from other seeds."""
    rng = random.Random(f"asked {kind.value} {length} {seed}")  # noqa: S311 - reproducible, not secret
    return [question(kind, length, rng, codec) for _ in range(n)]


def exact_answers(model: Fast, asked: Sequence[Question], state: State | None = None) -> int:
    """How many questions greedy decoding answers without a mistake.

    Args:
        model: what is asked.
        asked: the questions.
        state: what stands before every prompt; None is the zero state and an end of text.
    """
    before = (END_OF_TEXT,) if state is None else ()
    scored = model.score([((*before, *one.prompt), one.answer) for one in asked], state)
    # Greedy decoding gives the answer exactly where each of its tokens is the likeliest behind the ones before.
    return sum(bool(one.is_top.all()) for one in scored)
