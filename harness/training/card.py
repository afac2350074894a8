"""The figures of the shipped model's card, measured on the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from harness.training.measures import bits_per_byte, exact_answers, kl_mean_nats, questions
from harness.training.sources import open_sources
from reference.fast import Fast
from reference.number_formats import NumberFormat, RoundedState
from reference.training.tasks import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.checkpoints import Model
    from harness.training.recipe import Recipe
    from reference.checkpoint import Checkpoint
    from reference.state import State
    from tokenizer.codec import Codec

LENGTHS = {
    Kind.REVERSE: (1, 2, 4, 8, 12, 16),
    Kind.COPY: (1, 2, 4, 8, 12, 16),
    Kind.RECALL: (1, 2, 4, 8),
    Kind.SORT: (1, 2, 4, 8),
}
"""What is asked of each task."""

CLAIMED = {Kind.REVERSE: 12, Kind.COPY: 12, Kind.RECALL: 8, Kind.SORT: 8}
"""The greatest length at which at least 99 % of the answers are claimed to be exact."""

TUNED = Kind.BARE_REVERSE
TUNED_LENGTHS = (3, 4, 6, 8, 10)
"""What is asked of the tuned state; shorter strings are often their own reversal."""

KL_TOKENS = 512
"""Of each held-out document, for distances between logits."""

_TEMPLATE = Path(__file__).with_name("card.md.jinja")


@dataclass(frozen=True, slots=True)
class Ability:
    """What one model can do.

    Attributes:
        bits_per_byte: of held-out text.
        kl_mean_nats: of held-out text, from the shipped model in float32.
        exact: share of exact answers by task and length.
    """

    bits_per_byte: float
    kl_mean_nats: float
    exact: dict[Kind, dict[int, float]]

    def claimed(self, kind: Kind) -> float:
        """The share over all lengths that the card claims."""
        shares = [share for length, share in self.exact[kind].items() if length <= CLAIMED[kind]]
        return sum(shares) / len(shares)

    @property
    def worst(self) -> float:
        """The smallest share of a task and a claimed length."""
        return min(
            share for kind, shares in self.exact.items() for length, share in shares.items() if length <= CLAIMED[kind]
        )


def ability(model: Fast, shipped: Fast, held_out: Sequence[Sequence[int]], codec: Codec, n: int) -> Ability:
    """Measure with *n* questions of each task and length."""
    exact = {
        kind: {length: exact_answers(model, questions(kind, length, n, codec)) / n for length in lengths}
        for kind, lengths in LENGTHS.items()
    }
    kl = kl_mean_nats(shipped, model, [tokens[:KL_TOKENS] for tokens in held_out])
    return Ability(bits_per_byte(model, held_out, codec), kl, exact)


def tuned_ability(model: Fast, state: State | None, codec: Codec, n: int) -> dict[int, float]:
    """Share of exact answers to the tuned task by length, from a state or from none."""
    return {length: exact_answers(model, questions(TUNED, length, n, codec), state) / n for length in TUNED_LENGTHS}


def write_card(
    model: Model, recipe: Recipe, retrained: Sequence[Checkpoint], n: int, say: Callable[[str], None]
) -> str:
    """Measure everything and write the card.

    Args:
        model: the shipped model with its tuned state.
        recipe: it was trained by.
        retrained: models of the same recipe with other seeds, which tell how far its figures vary.
        n: questions of each task and length.
        say: tells what is being measured.
    """
    checkpoint, codec = model.checkpoint, model.codec
    held_out = open_sources(recipe, codec).held_out
    exact = Fast(checkpoint)

    def measured(what: str, fast: Fast) -> Ability:
        found = ability(fast, exact, held_out, codec, n)
        say(f"{what}: {found.bits_per_byte:.3f} bits per byte, at least {found.worst:.1%} exact where claimed")
        return found

    shipped = measured("as shipped", exact)
    formats = {}
    for number_format in NumberFormat:
        if number_format is NumberFormat.FP32:
            continue
        rounded = replace(checkpoint, tensors=number_format.keep_matrices(dict(checkpoint.tensors)))
        formats[f"{number_format.value} weights"] = measured(f"{number_format.value} weights", Fast(rounded))
    for number_format in NumberFormat:
        if number_format is not NumberFormat.FP32:
            what = f"{number_format.value} state"
            formats[what] = measured(what, RoundedState(checkpoint, number_format))
    again = [measured(f"retrained: {other.name}", Fast(other)) for other in retrained]
    tuned = None
    if model.tuned is not None:
        tuned = (tuned_ability(exact, None, codec, n), tuned_ability(exact, model.tuned.state, codec, n))
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701 - Markdown
    return environment.from_string(_TEMPLATE.read_text()).render(
        checkpoint=checkpoint,
        parameters=sum(t.numel() for t in checkpoint.tensors.values()),
        recipe=recipe,
        n=n,
        kl_tokens=KL_TOKENS,
        held_out_bytes=sum(map(len, held_out)),
        shipped=shipped,
        claimed={kind.value: longest for kind, longest in CLAIMED.items()},
        kinds=list(LENGTHS),
        lengths=sorted({length for lengths in LENGTHS.values() for length in lengths}),
        formats=formats,
        again=again,
        tuned=tuned,
    )
