"""A folder that remembers what it was asked: the same question goes on in it, another one is refused."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import filelock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

QUESTION = "question.json"
_LOCK = ".asked.lock"


class QuestionError(RuntimeError):
    """The folder belongs to another question, or to something else; says what differs."""


class WorkingError(RuntimeError):
    """Another command works in the folder."""


@contextmanager
def working_in(folder: Path, question: Mapping[str, str]) -> Iterator[None]:
    """Keep others out of *folder* and have it remember *question*, which a killed command has left there in full.

    Raises:
        QuestionError: the folder was asked something else, or has other contents.
        WorkingError: another command works there.
        OSError: it cannot be written to.
    """
    if folder.is_dir():  # before a lock file is put among other people's files
        _check(folder, question)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise WorkingError(f"{folder}: another command works there; wait for it, or name another --out") from None
    try:
        _check(folder, question)
        temporary = folder / f".{QUESTION}"
        temporary.write_text(json.dumps(dict(question), indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / QUESTION)
        yield
    finally:
        lock.release()


def _check(folder: Path, question: Mapping[str, str]) -> None:
    path = folder / QUESTION
    if not path.is_file():
        if other := sorted(one.name for one in folder.iterdir() if not one.name.startswith(".")):
            raise QuestionError(
                f"{folder}: should be empty or have a {QUESTION}, but has {other[0]}; name another --out"
            )
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise QuestionError(f"{path}: cannot be read: {error}; remove the folder, or name another --out") from error
    if known != dict(question):
        names = dict.fromkeys([*known, *question]) if isinstance(known, dict) else {}
        differing = [name for name in names if known.get(name) != question.get(name)]
        told = "; ".join(
            f"{name} {known.get(name, 'none')!r}, not {question.get(name, 'none')!r}" for name in differing
        )
        raise QuestionError(f"{folder} was asked something else: {told}; name another --out, or remove the folder")
