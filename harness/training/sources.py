"""A recipe's sources, opened: text to ids by a codec."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, TypeVar

import msgspec

from harness.training.recipe import Answers, Exercises, PythonDocs, RecipeError, TextFiles
from reference.training.documents import Mixture, Question, Questions, Texts
from reference.training.tasks import Kind

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from harness.training.recipe import Recipe
    from reference.training.documents import Source
    from tokenizer.codec import Codec


@dataclass(frozen=True, slots=True)
class Opened:
    """What a training learns from.

    Attributes:
        mixture: makes the batches.
        held_out: documents, as ids, that are never learned.
        sha256: of all texts.
    """

    mixture: Mixture
    held_out: tuple[tuple[int, ...], ...]
    sha256: str


_Kind = TypeVar("_Kind", bound=msgspec.Struct)


class _Line(msgspec.Struct):
    text: str


class _AnswerLine(msgspec.Struct):
    prompt: str
    answer: str


def open_sources(recipe: Recipe, codec: Codec, *, packed: bool = True) -> Opened:
    """Read all texts of a recipe.

    Args:
        recipe: whose sources are opened; file names are relative to the working directory.
        codec: makes ids of them.
        packed: as in :class:`reference.training.documents.Questions`.

    Raises:
        RecipeError: a file cannot be read, or holds something else.
        DocumentError: there is nothing to learn in one.
        CodecError: the codec has no text.
    """
    digest = hashlib.sha256()
    sources: list[Source] = []
    held_out: list[tuple[int, ...]] = []
    for source in recipe.sources:
        match source:
            case Exercises():
                sources.append(Questions(_exercises(source, codec), packed=packed))
            case Answers():
                among = _answers(source, codec)
                digest.update(repr(among).encode())
                sources.append(Questions(partial(_choose, among), packed=packed))
            case PythonDocs() | TextFiles():
                documents = [codec.encode(text) for text in _texts(source)]
                digest.update(repr(documents).encode())
                every = source.held_out_every
                held_out += [tuple(tokens) for tokens in (documents[::every] if every else [])]
                sources.append(Texts([tokens for i, tokens in enumerate(documents) if not every or i % every]))
    mixture = Mixture(tuple(sources), tuple(source.share for source in recipe.sources))
    return Opened(mixture, tuple(held_out), digest.hexdigest())


def question(kind: Kind, length: int, rng: random.Random, codec: Codec) -> Question:
    """Draw an exercise as ids."""
    exercise = kind.exercise(length, rng)
    return Question(tuple(codec.encode(exercise.prompt)), tuple(codec.encode(exercise.answer)))


def _choose(among: Sequence[Question], rng: random.Random) -> Question:
    return rng.choice(among)


def _exercises(source: Exercises, codec: Codec) -> Callable[[random.Random], Question]:
    longest = {Kind(name): length for name, length in source.lengths.items()}

    def draw(rng: random.Random) -> Question:
        kind = rng.choice(list(longest))
        return question(kind, rng.randint(1, longest[kind]), rng, codec)

    return draw


def _answers(source: Answers, codec: Codec) -> Sequence[Question]:
    lines = _lines(source.file, _AnswerLine)
    if not lines or not all(line.prompt and line.answer for line in lines):
        raise RecipeError(f"{source.file}: every line should have a prompt and an answer that are not empty")
    return [Question(tuple(codec.encode(line.prompt)), tuple(codec.encode(line.answer))) for line in lines]


def _texts(source: PythonDocs | TextFiles) -> list[str]:
    if isinstance(source, PythonDocs):
        return [topics[name] for name in sorted(topics)]
    texts: list[str] = []
    for name in source.files:
        if name.endswith(".jsonl"):
            texts += [line.text for line in _lines(name, _Line)]
        else:
            texts.append(_read(name))
    return texts


def _lines(name: str, kind: type[_Kind]) -> list[_Kind]:
    decoder = msgspec.json.Decoder(kind)
    parsed = []
    for number, line in enumerate(_read(name).splitlines(), 1):
        try:
            parsed.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise RecipeError(f"{name}:{number}: {error}") from error
    return parsed


def _read(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name}: is not UTF-8 at byte {error.start}; text files in UTF-8 are expected") from error
