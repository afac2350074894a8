"""A sick board stays sick for every later run, until a person has looked at it: one file a board says why and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from harness.manifest import now

if TYPE_CHECKING:
    from pathlib import Path

_FILE = "quarantine.json"


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """Why a board is not to be used, and since when."""

    since: str
    reason: str


def file_of(folder: Path) -> Path:
    """Where the quarantine of the board that *folder* is about is written."""
    return folder / _FILE


def look(folder: Path) -> Quarantine | None:
    """The quarantine of the board that *folder* is about, if there is one; a file that cannot be read is one too."""
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=Quarantine)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        return Quarantine(since="an unknown time", reason=f"{folder / _FILE} cannot be read: {error}")


def put(folder: Path, reason: str) -> Quarantine:
    """Put a board into quarantine."""
    entry = Quarantine(since=now(), reason=reason)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FILE).write_bytes(msgspec.json.encode(entry))
    return entry


def lift(folder: Path) -> Quarantine | None:
    """Let a board out; returns what it was in for, None where it was free."""
    entry = look(folder)
    (folder / _FILE).unlink(missing_ok=True)
    return entry
