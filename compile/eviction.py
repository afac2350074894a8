"""Keeps the cache under its limit: what was not used for longest goes first, and nothing that is in use.

Whoever uses a result holds a shared lock on a file of it, which ends with the holder, however that ends. What was used
within the last hour stays too: a path may have been handed on by somebody who no longer holds anything.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import filelock

from compile.stages import MARKER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LIMIT_VARIABLE = "RWKV_TPU_CACHE_LIMIT"
DEFAULT_LIMIT_BYTES = 20_000_000_000
RECENT_S = 3600.0

_FOLDERS = ("bmodels", "dialects", "failed")


class LimitError(ValueError):
    """The limit that is asked for is none."""


class Hold:
    """A result in use: nothing evicts it while this exists."""

    def __init__(self, file: Path) -> None:
        """Lock *file* of the result and note the use.

        Raises:
            FileNotFoundError: it is not there, or was evicted at this moment.
        """
        self._file, self._descriptor = file, -1
        self._descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(self._descriptor), file.stat()):
            self.release()
            raise FileNotFoundError(f"{file} was replaced at this moment")
        os.utime(self._descriptor)

    def release(self) -> None:
        """Let it be evicted; twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __reduce__(self) -> tuple[type[Hold], tuple[Path]]:
        """In another process it is a hold of its own."""
        return Hold, (self._file,)

    def __del__(self) -> None:
        """Whoever forgets it no longer uses it."""
        self.release()


@dataclass(frozen=True, slots=True)
class _Entry:
    folder: Path
    key: str
    bytes: int
    used_at: float  # seconds since 1970
    held: Path | None  # the file that its users lock


def limit_bytes(environment: Mapping[str, str] = os.environ) -> int:
    """What ``RWKV_TPU_CACHE_LIMIT`` says, in gigabytes; 20 where it says nothing.

    Raises:
        LimitError: it is no number.
    """
    text = environment.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return DEFAULT_LIMIT_BYTES
    try:
        limit = float(text)
    except ValueError:
        limit = float("nan")
    if not limit >= 0:
        raise LimitError(f"{LIMIT_VARIABLE}={text}: should be gigabytes, such as 20 or 0.5, and `inf` for no limit")
    return int(min(limit * 1e9, 1e18))


def evict(cache: Path, limit: int, *, now: float | None = None) -> tuple[Path, ...]:
    """Remove results, failures and what killed compiles left, the least recently used first, down to *limit* bytes.

    Returns:
        What was removed. What is in use stays, even above the limit.
    """
    entries = sorted(_entries(cache), key=lambda entry: entry.used_at)
    total = sum(entry.bytes for entry in entries)
    latest = (time.time() if now is None else now) - RECENT_S
    removed = []
    for entry in entries:
        if total <= limit:
            break
        if entry.used_at <= latest and _remove(entry):
            total -= entry.bytes
            removed.append(entry.folder)
    return tuple(removed)


def _entries(cache: Path) -> Iterator[_Entry]:
    for name in _FOLDERS:
        for folder in (cache / name).glob("*"):
            if not folder.is_dir():
                continue
            try:
                files = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()]
                used_at = max((stat.st_mtime for _, stat in files), default=folder.stat().st_mtime)
            except OSError:
                continue  # somebody else removes it
            held = next((path for path, _ in files if path.parent == folder and path.name == "result.json"), None)
            key = folder.name.lstrip(".").partition(".")[0]
            yield _Entry(folder, key, sum(stat.st_size for _, stat in files), used_at, held)


def _remove(entry: _Entry) -> bool:
    """Whether it could be removed; not while it is made or used."""
    making = filelock.FileLock(entry.folder.parent / f".{entry.key}.lock")
    try:
        with making.acquire(blocking=False):
            descriptor = None if entry.held is None else os.open(entry.held, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if descriptor is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The key first, so that a result that is half removed counts for none.
                for key in (entry.held, entry.folder / MARKER):
                    if key is not None:
                        key.unlink(missing_ok=True)
                shutil.rmtree(entry.folder, ignore_errors=True)
            finally:
                if descriptor is not None:
                    os.close(descriptor)
    except (filelock.Timeout, OSError):
        return False
    return True
