"""A recipe: all that determines a training but the checkpoint that it starts from, as a TOML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from reference.shape import LoraRanks, ModelShape
from reference.training.optimizer import Schedule  # noqa: TC001 - msgspec looks it up
from reference.training.tasks import Kind
from tokenizer.codec import Codec

if TYPE_CHECKING:
    from pathlib import Path


class RecipeError(ValueError):
    """A recipe that makes no sense: names the file, the place, what was expected and what was found."""


class PythonDocs(
    msgspec.Struct, tag="python-docs", tag_field="kind", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """The language reference that Python carries with it (``pydoc_data.topics``): English that needs no download."""

    share: float = 1.0
    held_out_every: int = 12


class TextFiles(msgspec.Struct, tag="text", tag_field="kind", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files of UTF-8 text, each a document; of ``.jsonl`` files each line, ``{"text": …}``."""

    files: tuple[str, ...]
    share: float = 1.0
    held_out_every: int = 0


class Answers(msgspec.Struct, tag="answers", tag_field="kind", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of JSON lines, ``{"prompt": …, "answer": …}``: the answers alone are learned."""

    file: str
    share: float = 1.0


class Exercises(
    msgspec.Struct, tag="exercises", tag_field="kind", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Generated tasks with one right answer, each kind with its greatest length; lengths are drawn evenly from 1 on."""

    lengths: dict[str, int]
    share: float = 1.0


SourceRecipe = PythonDocs | TextFiles | Answers | Exercises


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is learned, how, and by a model of which sizes.

    Attributes:
        schedule: see :class:`reference.training.optimizer.Schedule`.
        sources: what is learned; a row of a batch comes from one of them, drawn by their shares.
        shape: sizes of a new model; left out where a training goes on from a checkpoint.
        codec: of a new model.
        rows: of a batch.
        context: tokens of a row.
        save_every: steps between two saved states of the training.
        recompute: gradient checkpointing: less memory, a third more time.
    """

    schedule: Schedule
    sources: tuple[SourceRecipe, ...]
    shape: ModelShape | None = None
    codec: Codec = Codec.WORLD_BYTES
    seed: int = 0
    rows: int = 32
    context: int = 128
    save_every: int = 100
    recompute: bool = False


SMALL = ModelShape(
    n_layer=2,
    n_embd=128,
    head_size=64,
    n_ffn=512,
    n_vocab=257,
    ranks=LoraRanks(decay=32, rate=32, value=16, gate=32),
)
"""Sizes of a new model where nothing is said."""


def read_recipe(path: Path) -> Recipe:
    """Read a recipe and check that it makes sense.

    Raises:
        RecipeError: it cannot be read, or something in it is out of range.
    """
    try:
        recipe = msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    check_recipe(recipe, str(path))
    return recipe


def check_recipe(recipe: Recipe, name: str) -> None:
    """Check ranges.

    Raises:
        RecipeError: something is out of range.
    """

    def need(holds: object, what: str) -> None:
        if not holds:
            raise RecipeError(f"{name}: {what}")

    need(recipe.sources, "no sources; at least one [[sources]] is needed to learn from")
    need(recipe.rows >= 1 and recipe.context >= 2, "rows should be at least 1 and context at least 2")
    need(recipe.save_every >= 1, "save_every should be at least 1")
    need(recipe.schedule.steps >= 1, "schedule.steps should be at least 1")
    need(recipe.schedule.rate > 0, "schedule.rate should be above 0")
    need(0 <= recipe.schedule.final <= 1, "schedule.final should be from 0 to 1")
    for source in recipe.sources:
        need(source.share > 0, f"share {source.share} of a source, but shares should be above 0")
        if isinstance(source, Exercises):
            kinds = [kind.value for kind in Kind]
            need(source.lengths, f"lengths of a source is empty; there are {', '.join(kinds)}")
            for kind, longest in source.lengths.items():
                need(kind in kinds, f"no exercise {kind!r}; there are {', '.join(kinds)}")
                top = 26 if kind == Kind.RECALL.value else 1000
                need(1 <= longest <= top, f"length {longest} of {kind}, but should be 1 to {top}")
