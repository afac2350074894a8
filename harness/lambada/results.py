"""Per-document results in a file that survives a kill: a header line, then a line a document.

Of a board there are also lines about its canary. Documents between a canary that passed and one that did not are in
doubt: their lines stay, but they count as not scored.

The file's name contains a hash of all that determines the numbers. So the same command finds its file again and goes
on where it was stopped, and nothing else does. The format is documented in ``docs/lambada.md``.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import filelock
import msgspec

from harness.manifest import now
from reports.schema import Outcome, Reading, Record

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from pathlib import Path

    from harness.targets.base import Score

SCHEMA = 1


class ResultsError(ValueError):
    """A results file that cannot be trusted, written or had; names the file and what to do."""


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that determines the numbers."""

    checkpoint_sha256: str
    codec: str
    target: dict[str, str]  # the scorer's identity
    data_sha256: str
    protocol: int
    state_sha256: str | None = None  # of the file of an initial state; None is the zero state

    @property
    def sha256(self) -> str:
        """Of all of it, whatever the order of its dictionaries."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class Header(msgspec.Struct, tag="lambada", tag_field="type", frozen=True, kw_only=True):
    """The first line."""

    schema: int = SCHEMA
    key: Key
    started: str  # ISO 8601 with offset; from here on only for people to read
    harness: str  # version
    checkpoint: str  # name
    description: str  # the scorer's

    @property
    def file_name(self) -> str:
        """Readable in front, unique by the hash behind."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.checkpoint}-{self.key.target.get('target', '')}")
        return f"{readable[:80]}-{self.key.sha256[:16]}.jsonl"


class Result(msgspec.Struct, tag="document", tag_field="type", frozen=True, kw_only=True):
    """What a target says about the last word of one document; None, null in the file, is NaN or infinite."""

    id: str
    log_likelihood: float | None  # natural logarithm of the word's probability: the sum of log_probs
    correct: bool  # every token of the word is the likeliest one
    log_probs: tuple[float | None, ...]  # of each token

    @classmethod
    def of(cls, document_id: str, score: Score) -> Result:
        """Keep a score, in full precision."""
        log_probs = tuple(float(x) if math.isfinite(x) else None for x in score.log_probs)
        finite = [x for x in log_probs if x is not None]
        return cls(
            id=document_id,
            log_likelihood=math.fsum(finite) if len(finite) == len(log_probs) else None,
            correct=bool(score.is_top.all()),
            log_probs=log_probs,
        )


class BoardCheck(msgspec.Struct, tag="board", tag_field="type", frozen=True, kw_only=True):
    """What a board's canary and its health were at some moment."""

    at: str  # ISO 8601 with offset
    canary: Record
    health: tuple[Reading, ...]

    @property
    def is_well(self) -> bool:
        """Whether the board could be trusted."""
        return self.canary.outcome is Outcome.PASSED


Line = Header | Result | BoardCheck


class Results:
    """The results of one target on one checkpoint, as far as there are any."""

    def __init__(self, path: Path, header: Header, done: Iterable[Result]) -> None:
        """*done* are in the file already."""
        self.path = path
        self.header = header
        self._done = {result.id: result for result in done}

    def __contains__(self, document_id: object) -> bool:
        """Whether a document was scored."""
        return document_id in self._done

    def __getitem__(self, document_id: str) -> Result:
        """Return the result of a document that was scored."""
        return self._done[document_id]

    def add(self, results: Sequence[Result]) -> None:
        """Append results; when this returns they are on disk.

        Raises:
            ResultsError: they cannot be written.
        """
        _append(self.path, results)
        self._done |= {result.id: result for result in results}

    def note(self, canary: Record, health: tuple[Reading, ...]) -> None:
        """Append what a board's canary gave; a later opening of the file counts only what is not in doubt.

        Raises:
            ResultsError: it cannot be written.
        """
        _append(self.path, [BoardCheck(at=now(), canary=canary, health=health)])


@contextmanager
def open_results(folder: Path, header: Header) -> Generator[Results]:
    """Open the results file that belongs to the header's key, or begin it; nobody else can while it is open.

    A last line without its end, as a kill in the middle of a write leaves it, is cut off.

    Raises:
        ResultsError: another process has it open, it is damaged, or it cannot be written.
    """
    path = folder / header.file_name
    lock = filelock.FileLock(folder / f".{path.name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ResultsError(f"{path}: another process is writing it; let it end, then run the command again") from None
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield _open(path, header)
    finally:
        lock.release()


def read(path: Path) -> tuple[Header, tuple[Result, ...]]:
    """Read a results file; a last line without its end is left out.

    Raises:
        ResultsError: it cannot be read, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
    return _parse(path, content)


def _open(path: Path, header: Header) -> Results:
    try:
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be opened: {error.strerror}") from error
    if not whole:
        _append(path, [header])
        return Results(path, header, [])
    found, done = _parse(path, content)
    if found.key != header.key:
        raise ResultsError(
            f"{path}: its header is of other results than its name says; remove the file to score all documents again"
        )
    return Results(path, found, done)


def _parse(path: Path, content: bytes) -> tuple[Header, tuple[Result, ...]]:
    decoder = msgspec.json.Decoder(Line)
    remedy = "remove the file to score all documents again"
    lines: list[Line] = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            lines.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ResultsError(f"{path}:{number}: damaged: {error}; {remedy}") from error
    if not lines or not isinstance(lines[0], Header):
        raise ResultsError(f"{path}:1: should be the header of LAMBADA results; {remedy}")
    header = lines[0]
    if header.schema != SCHEMA:
        raise ResultsError(f"{path}:1: has schema {header.schema}, but this release reads {SCHEMA}; {remedy}")
    sure: dict[str, Result] = {}
    since_canary: dict[str, Result] = {}
    for entry in lines[1:]:
        if isinstance(entry, BoardCheck):
            sure |= since_canary if entry.is_well else {}
            since_canary = {}
        elif isinstance(entry, Header) or entry.id in sure or entry.id in since_canary:
            raise ResultsError(f"{path}: a document or the header stands in it twice; {remedy}")
        else:
            since_canary[entry.id] = entry
    return header, tuple((sure | since_canary).values())


def _append(path: Path, lines: Sequence[Line]) -> None:
    encoded = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    try:
        # Opened for each batch: nothing is lost in a buffer when the process dies.
        with path.open("ab") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error
