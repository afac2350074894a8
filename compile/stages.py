"""The stages of a compile, and the marker that says on disk how far one got.

The marker is written as each stage begins and ends. It names the stage that a killed compile was in, and what the ones
before it made, with hashes: what is whole need not be made again.
"""

from __future__ import annotations

import hashlib
import shutil
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MARKER = "stages.json"


class Stage(Enum):
    """Where a compile can fail."""

    EXPORT = "export"  # arrays and torch module to ONNX
    TRANSFORM = "transform"  # ONNX to the TOP dialect
    LOWER = "lower"  # TOP to the TPU dialect, with quantisation
    CODEGEN = "codegen"  # TPU dialect to bmodel


class Artefact(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a stage made."""

    name: str
    bytes: int
    sha256: str


class StageDone(msgspec.Struct, frozen=True, kw_only=True):
    """A stage that has ended well.

    Attributes:
        stage: which.
        seconds: wall time.
        peak_bytes: largest resident set of one process meanwhile; of the export, of this process.
        log: the file of what the tool said.
        artefacts: what it made that a later stage reads, or that is the result.
    """

    stage: Stage
    seconds: float
    peak_bytes: int
    log: str
    artefacts: tuple[Artefact, ...]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a compile is.

    Attributes:
        key: of the job.
        limit_s: the time limit of each stage.
        done: the stages that have ended well, in order.
        running: the one at work; None after the last.
        f32_operations: what the export says must be computed in float32.
    """

    key: str
    limit_s: float
    done: tuple[StageDone, ...] = ()
    running: Stage | None = None
    f32_operations: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Put the marker into *folder*, whole or not at all."""
        partial = folder / f"{MARKER}.partial"
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2))
        partial.replace(folder / MARKER)

    def named(self, stage: Stage) -> StageDone | None:
        """What is known of a stage that has ended."""
        return next((one for one in self.done if one.stage is stage), None)


def read_progress(folder: Path) -> Progress | None:
    """The marker in *folder*; None where there is none that can be read."""
    try:
        return msgspec.json.decode((folder / MARKER).read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError):
        return None


def artefacts_of(paths: Iterable[Path]) -> tuple[Artefact, ...]:
    """Size and hash of files, each by its name alone."""
    return tuple(Artefact(name=path.name, bytes=path.stat().st_size, sha256=hash_file(path)) for path in paths)


def take_over(leftover: Path, work: Path, key: str) -> tuple[Progress, Stage | None] | None:
    """Move what a killed compile had finished from its working folder into a new one.

    Only whole files of finished stages are moved, since a tool of the killed compile may still be about to die in the
    old folder. Lowering and code generation are one tool, so that neither is gone on from.

    Returns:
        What there is now, and the stage in which the other was killed; None where the folder is not of this job.
    """
    found = read_progress(leftover)
    if found is None or found.key != key:
        return None
    kept: list[StageDone] = []
    for one in found.done:
        if one.stage not in {Stage.EXPORT, Stage.TRANSFORM}:
            break
        kept.append(one)
    while kept and not _are_whole(leftover, kept[-1].artefacts):
        kept.pop()
    for one in kept[-1:]:
        for artefact in one.artefacts:
            shutil.move(leftover / artefact.name, work / artefact.name)
    for one in kept:
        if (leftover / one.log).is_file():
            shutil.move(leftover / one.log, work / one.log)
    f32 = found.f32_operations if kept else ()
    progress = msgspec.structs.replace(found, done=tuple(kept), running=None, f32_operations=f32)
    progress.write(work)
    return progress, found.running


def _are_whole(folder: Path, artefacts: Iterable[Artefact]) -> bool:
    return all(
        (path := folder / one.name).is_file() and path.stat().st_size == one.bytes and hash_file(path) == one.sha256
        for one in artefacts
    )


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
