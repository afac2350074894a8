"""The nights of a folder, and what each of them keeps about itself."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from reports.history import RECORDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NIGHTS = "nights"
LOCK = ".lock"
"""In a night's folder: the suites hold it as long as they live, whatever becomes of who started them."""

_STATE = "night.json"
_FORMAT = "%Y%m%dT%H%M%S.%fZ"


class NightError(RuntimeError):
    """A night that cannot be used; says which and what to do."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a night keeps about itself.

    Attributes:
        started: in ISO 8601, UTC.
        question: what it was asked, in a form that is the same for the same; a night goes on for no other.
        finished: the same; None while it runs, and of a night that was interrupted.
        baseline: the night that it was judged against; empty where there was none.
        code: the gate's exit code.
        good: whether the next nights may be judged against it.
        accepted: whether a person said so.
    """

    started: str
    question: str = ""
    finished: str | None = None
    baseline: str = ""
    code: int | None = None
    good: bool = False
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Night:
    """A folder of runs that one call of ``rwkv-tpu nightly`` made."""

    folder: Path
    state: State

    @property
    def name(self) -> str:
        """The folder's name: when it began, in UTC."""
        return self.folder.name

    @property
    def runs(self) -> tuple[Path, ...]:
        """The folders of its runs, complete or not."""
        return tuple(path.parent for path in sorted(self.folder.glob(f"*/{RECORDS}")))

    @property
    def words(self) -> str:
        """What is to be said of it in a list."""
        state = self.state
        judged = f"gate {state.code} against {state.baseline or 'nothing'}" if state.code is not None else "no verdict"
        told = "interrupted or running" if state.finished is None else judged
        return told + ("; accepted as baseline" if state.accepted else "; good" if state.good else "")

    def is_running(self) -> bool:
        """Whether a process still works on its runs."""
        try:
            file = os.open(self.folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def with_state(self, state: State) -> Night:
        """The same night with another state, which is kept."""
        keep(self.folder, state)
        return Night(self.folder, state)


def begin(folder: Path, question: str = "") -> Night:
    """Make a night in the *folder* of nights, and have it remember what it was asked."""
    now = datetime.now(UTC)
    made = folder / NIGHTS / now.strftime(_FORMAT)
    made.mkdir(parents=True)
    (made / LOCK).touch()
    state = State(started=now.isoformat(timespec="seconds"), question=question)
    keep(made, state)
    return Night(made, state)


def nights_of(folder: Path) -> tuple[Night, ...]:
    """All nights, the oldest first. Folders that no nightly made are not among them.

    Raises:
        NightError: what a night keeps about itself cannot be read.
    """
    found = []
    for path in sorted((folder / NIGHTS).glob(f"[!.]*/{_STATE}")):
        if path.parent.is_symlink():
            continue
        try:
            state = msgspec.json.decode(path.read_bytes(), type=State)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NightError(f"{path}: {error}; remove the folder {path.parent}, or repair the file") from error
        found.append(Night(path.parent, state))
    return tuple(found)


def unfinished(nights: Sequence[Night], question: str) -> Night | None:
    """The latest night, where it was asked the same and interrupted, so that it can be gone on with; otherwise None."""
    if not nights:
        return None
    latest = nights[-1]
    left = latest.state.finished is None and not latest.is_running()
    return latest if left and latest.state.question == question else None


def baseline_of(nights: Sequence[Night]) -> Night | None:
    """The last good night; None where none was."""
    return next((night for night in reversed(nights) if night.state.good), None)


def keep(folder: Path, state: State) -> None:
    """Write a night's state, whole or not at all."""
    temporary = folder / f".{_STATE}"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
    temporary.replace(folder / _STATE)
