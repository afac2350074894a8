"""The checkpoint of a run: loaded once, bound to a codec, with the questions that it is known to answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from compile.identity import hash_arrays
from harness.tasks import NAMES, questions
from reference.checkpoint import load
from reference.state_file import load_state
from tokenizer.codec import Codec, check, codec_for

if TYPE_CHECKING:
    import numpy as np

    from harness.tasks import Question
    from reference.checkpoint import Checkpoint
    from reference.state import State

_ROOT = Path(__file__).parent.parent
KNOWN = _ROOT / "suites" / "checkpoints.toml"

DEFAULT = _ROOT / "models" / "tiny.safetensors"
"""What is judged where nothing else is named: the trained model that ships with the project (docs/model-card.md)."""


class _Tuned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    state: str
    tasks: dict[str, tuple[int, ...]]


class _Known(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    sha256: str
    codec: Codec
    tasks: dict[str, tuple[int, ...]] = {}
    tuned: _Tuned | None = None

    def __post_init__(self) -> None:
        """Check the names of the tasks: a slip must not make a suite skip."""
        for name in [*self.tasks, *(self.tuned.tasks if self.tuned else {})]:
            if name not in NAMES:
                raise ValueError(f"no task {name!r}; there are {', '.join(NAMES)}")


@dataclass(frozen=True)
class TunedState:
    """An initial state, and the questions that the model answers from it alone."""

    name: str
    state: State
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Model:
    """A checkpoint, what its ids mean, and what it is known to answer."""

    checkpoint: Checkpoint
    codec: Codec
    questions: tuple[Question, ...] = ()
    tuned: TunedState | None = None

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors as float32 arrays, for the graphs; they share memory with the checkpoint's."""
        return {name: tensor.numpy() for name, tensor in self.checkpoint.tensors.items()}

    @cached_property
    def arrays_sha256(self) -> str:
        """Identity of the tensors."""
        return hash_arrays(self.arrays)


def open_model(path: Path | None, codec: Codec | None = None) -> Model:
    """Load a checkpoint, a file or a folder of any container, or the one that ships; bind it to its codec.

    A file listed in ``suites/checkpoints.toml`` has the codec, the tasks and the tuned state given there; any other
    has neither tasks nor state, and, unless one is asked for, the codec that its vocabulary size suggests.

    Raises:
        CheckpointError: the file is not an RWKV-7 checkpoint.
        CodecError: the codec does not fit the vocabulary.
    """
    checkpoint = load(DEFAULT if path is None else path)
    entry = _entry(checkpoint.sha256)
    codec = codec or codec_of(checkpoint.sha256, checkpoint.shape.n_vocab)[0]
    check(codec, checkpoint.shape.n_vocab)
    if entry is None or entry.codec is not codec:
        return Model(checkpoint, codec)
    tuned = None
    if entry.tuned is not None:
        tuned = TunedState(
            name=Path(entry.tuned.state).stem,
            state=load_state(_ROOT / entry.tuned.state, checkpoint.shape),
            questions=questions(entry.tuned.tasks, codec, behind_state=True),
        )
    return Model(checkpoint, codec, questions(entry.tasks, codec), tuned)


def codec_of(sha256: str, n_vocab: int) -> tuple[Codec, bool]:
    """A checkpoint's codec, and whether it is known for this very file rather than guessed by its vocabulary size."""
    entry = _entry(sha256)
    return (entry.codec, True) if entry else (codec_for(n_vocab), False)


def _entry(sha256: str) -> _Known | None:
    known = msgspec.toml.decode(KNOWN.read_bytes(), type=dict[str, _Known])
    return next((entry for entry in known.values() if entry.sha256 == sha256), None)
