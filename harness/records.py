"""Writes a run's records, one line at a time, so that a killed run keeps every line before."""

from __future__ import annotations

import fcntl
import os
import weakref
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from harness.manifest import now
from reports import schema

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RECORDS = "records.jsonl"


class FolderBusyError(RuntimeError):
    """Another process is still writing this run."""


class FolderLock:
    """Held while a run's folder is written; the kernel lets go of it when the process dies, and nothing is left."""

    def __init__(self, folder: Path) -> None:
        """Take it.

        Raises:
            FolderBusyError: somebody else has it.
            OSError: there is no such folder.
        """
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._close = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise FolderBusyError(f"{folder}: this run is still being written by another process") from error
        except OSError:
            pass  # a file system without locks: then nobody has one

    def release(self) -> None:
        """Let go; twice does nothing."""
        self._close()


class RunWriter:
    """The records file of one run, ``records.jsonl`` in the run's folder."""

    def __init__(
        self, folder: Path, run: schema.Run, *, kept: Sequence[schema.Record] = (), lock: FolderLock | None = None
    ) -> None:
        """Write the first line; of a run that goes on, it and the records that are *kept*, before the first new one.

        Args:
            folder: of the run; made unless there is a *lock*.
            run: the first line.
            kept: what an earlier part of the run recorded.
            lock: of a folder that is there, whose run goes on.

        Raises:
            FileExistsError: there is such a folder, and no *lock*.
            OSError: it cannot be written; a run that was there is what it was.
        """
        if lock is None:
            folder.mkdir(parents=True, exist_ok=False)
        self._lock = lock or FolderLock(folder)
        self.folder = folder
        self.path = folder / RECORDS
        self._outcomes = Counter(record.outcome.value for record in kept)
        self._head: bytes | None = b"".join([_line(run), *map(_line, kept)])
        if lock is None:
            self._write_head()

    def add(self, record: schema.Record) -> None:
        """Append a record.

        Raises:
            OSError: it cannot be written; the records before it are whole.
        """
        self._write(record)
        self._outcomes[record.outcome.value] += 1

    def end(self, exit_status: int, health: tuple[schema.Reading, ...] = (), unmatched: tuple[str, ...] = ()) -> None:
        """Append the last line: the run is complete.

        *health* is what the board said after it, *unmatched* the expectations of failures that match nothing.
        """
        counts = dict(self._outcomes)
        records = sum(counts.values())
        self._write(
            schema.End(
                finished=now(),
                records=records,
                outcomes=counts,
                exit_status=exit_status,
                health=health,
                unmatched=unmatched,
            )
        )

    def close(self) -> None:
        """Let others go on with the run; twice does nothing."""
        self._lock.release()

    def _write_head(self) -> None:
        """Whole, or not at all: what was there before stays."""
        if self._head is not None:
            fresh = self.folder / f".{RECORDS}"
            fresh.write_bytes(self._head)
            fresh.replace(self.path)
            self._head = None

    def _write(self, line: schema.Line) -> None:
        self._write_head()
        # Opened for each line: a line a second needs no more, and nothing is lost in a buffer when the process dies.
        with self.path.open("ab", buffering=0) as file:
            whole, text = file.tell(), _line(line)
            try:
                while text:  # a disk that fills up takes a part of it
                    text = text[file.write(text) :]
            except OSError:
                with suppress(OSError):  # then the cut line tells by itself that it is no record
                    file.truncate(whole)
                raise


def drop_cut_line(path: Path) -> bool:
    """Take the last line off a file of lines where it was not written to its end; say whether it was so."""
    if not path.is_file():
        return False
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole == len(text):
        return False
    os.truncate(path, whole)
    return True


def _line(line: schema.Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"
