"""The checkpoint of a run: loaded once, bound to a codec, with the tasks that it is known to solve."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from compile.identity import hash_arrays
from harness.tasks import TASKS
from reference.checkpoint import load
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic
from tokenizer.codec import Codec, check, codec_for

if TYPE_CHECKING:
    import numpy as np

    from harness.tasks import Task
    from reference.checkpoint import Checkpoint

KNOWN = Path(__file__).parent.parent / "suites" / "checkpoints.toml"

DEFAULT_SHAPE = ModelShape(
    n_layer=2,
    n_embd=128,
    head_size=64,
    n_ffn=512,
    n_vocab=320,
    ranks=LoraRanks(decay=32, rate=32, value=16, gate=32),
)
"""The synthetic checkpoint that is judged where none is given: small enough for the simulator."""


class _Known(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    sha256: str
    codec: Codec
    task: str | None = None


@dataclass(frozen=True)
class Model:
    """A checkpoint and what its ids mean."""

    checkpoint: Checkpoint
    codec: Codec
    task: Task | None

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors as float32 arrays, for the graphs; they share memory with the checkpoint's."""
        return {name: tensor.numpy() for name, tensor in self.checkpoint.tensors.items()}

    @cached_property
    def arrays_sha256(self) -> str:
        """Identity of the tensors."""
        return hash_arrays(self.arrays)


def open_model(path: Path | None, codec: Codec | None = None) -> Model:
    """Load a checkpoint, a file or a folder of any container, or make the default synthetic one; bind it to its codec.

    A file listed in ``suites/checkpoints.toml`` has the codec and the task given there; any other has no task, and,
    unless one is asked for, the codec that its vocabulary size suggests.

    Raises:
        CheckpointError: the file is not an RWKV-7 checkpoint.
        CodecError: the codec does not fit the vocabulary.
    """
    checkpoint = synthetic(DEFAULT_SHAPE) if path is None else load(path)
    entry = _entry(checkpoint.sha256)
    codec = codec or codec_of(checkpoint.sha256, checkpoint.shape.n_vocab)[0]
    check(codec, checkpoint.shape.n_vocab)
    return Model(checkpoint, codec, TASKS[entry.task] if entry and entry.task else None)


def codec_of(sha256: str, n_vocab: int) -> tuple[Codec, bool]:
    """A checkpoint's codec, and whether it is known for this very file rather than guessed by its vocabulary size."""
    entry = _entry(sha256)
    return (entry.codec, True) if entry else (codec_for(n_vocab), False)


def _entry(sha256: str) -> _Known | None:
    known = msgspec.toml.decode(KNOWN.read_bytes(), type=dict[str, _Known])
    return next((entry for entry in known.values() if entry.sha256 == sha256), None)
