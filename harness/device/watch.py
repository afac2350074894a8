"""The door to a board for whatever is no suite: locked, its canary asked before and after, its health noted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from harness.device.canary import make_canary
from harness.device.guard import DOUBTFUL, Guard, InfraError
from harness.device.health import remarks
from harness.device.place import open_place
from reports.schema import Reading, Record

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from compile.toolchain import Toolchain
    from harness.device.place import Place

Note = Callable[[Record, tuple[Reading, ...]], None]
"""Takes what the canary gave, and what the board told of its health just before."""


def ignore(_record: Record, _health: tuple[Reading, ...]) -> None:
    """Note nothing."""


@contextmanager
def watched_place(
    device: str,
    libsophon: Path | None,
    toolchain: Toolchain,
    *,
    say: Callable[[str], None],
    note: Note = ignore,
) -> Generator[Place]:
    """Open a place for as long as it is used; engines are to be closed before it. The plain simulator is not watched.

    Args:
        device: as :func:`harness.device.place.open_place` takes it.
        libsophon: the same.
        toolchain: its simulator, and what compiles the canary where the default release is not installed.
        say: receives lines of progress.
        note: receives each check, also one that fails.

    Raises:
        BoardBusyError: somebody else uses the board; nothing has touched it.
        InfraError: the board is in quarantine, or its canary fails. Where that is afterwards, whatever the board gave
            since the check before is in doubt.
        NoBoardError, RemoteFault, ValueError: there is no such place.
    """
    place = open_place(device, libsophon, toolchain.libraries)
    try:
        if not place.watched:
            yield place
            return
        guard = Guard(place, partial(make_canary, toolchain, say=say))
        guard.claim()
        try:
            _check(guard, place, "before the first text", say, note)
            try:
                yield place
            except DOUBTFUL:
                _check(guard, place, "after a failure", say, note)
                raise
            _check(guard, place, "after the last text", say, note)
        finally:
            guard.release()
    finally:
        place.close()


def _check(guard: Guard, place: Place, when: str, say: Callable[[str], None], note: Note) -> None:
    if not guard.sick:  # by an earlier run
        readings = place.readings()
        for remark in remarks(readings):
            say(f"board: {remark}")
        say(f"canary {when} …")
        note(guard.check(when), readings)
    if guard.sick:
        raise InfraError(f"INFRA, nothing was judged: {guard.sick}")
