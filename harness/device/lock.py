"""One user of a board at a time: two at once have crashed both and left the board unusable until a reboot."""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
from pathlib import Path
from typing import Self

import msgspec

from harness.manifest import now
from harness.paths import cache_folder

MACHINE_WIDE = Path("/tmp")  # noqa: S108 - the one folder that all users of a machine share; a lock holds no secret


class BoardBusyError(RuntimeError):
    """Somebody else works with the board; says who."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lock."""

    pid: int
    command: str
    since: str


class BoardLock:
    """An exclusive lock on a board, for every user of this machine. The kernel frees it when its holder dies."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        """*name* is the board's; nothing is locked yet. *folder*, for tests, is where the lock files are."""
        self._name = name
        self._path = (folder or _folder()) / f"rwkv-tpu-{name}.lock"
        self._file: int | None = None

    def acquire(self) -> Self:
        """Take the lock at once, or fail.

        Raises:
            BoardBusyError: another process holds it.
        """
        file = self._open()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise BoardBusyError(f"{self._name} is in use {_by(self.holder())}. Wait for it to end") from None
        self._file = file
        holder = Holder(pid=os.getpid(), command=shlex.join(sys.argv), since=now())
        os.truncate(file, 0)
        os.pwrite(file, msgspec.json.encode(holder), 0)
        return self

    def release(self) -> None:
        """Give the lock back; twice does nothing."""
        if self._file is not None:
            file, self._file = self._file, None
            os.truncate(file, 0)
            os.close(file)

    def holder(self) -> Holder | None:
        """What the process that has, or had, the lock wrote about itself; None where nothing can be read."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Holder)
        except (OSError, msgspec.DecodeError):
            return None

    def held(self) -> bool:
        """Whether somebody holds it now."""
        if not self._path.exists():
            return False
        file = self._open()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def __enter__(self) -> Self:
        """Take the lock."""
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self.release()

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            # Without O_CREAT: with it, kernels refuse another user's file in a folder that all may write to.
            return os.open(self._path, flags)
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, flags | os.O_CREAT, 0o666)
            os.fchmod(file, 0o666)  # whatever the umask: others must be able to lock it too
            return file


def _folder() -> Path:
    return MACHINE_WIDE if os.access(MACHINE_WIDE, os.W_OK | os.X_OK) else cache_folder() / "boards"


def _by(holder: Holder | None) -> str:
    return "by another process" if holder is None else f"by process {holder.pid} since {holder.since}: {holder.command}"
