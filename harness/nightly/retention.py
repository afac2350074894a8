"""Which nights may go, and how they do."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from harness.nightly.nights import NIGHTS, baseline_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.nightly.nights import Night

_GOING = ".going-"


def superfluous(nights: Sequence[Night], *, now: datetime, count: int | None, days: float | None) -> tuple[Night, ...]:
    """Choose the nights to remove: all beyond the latest *count*, and all older than *days*; None sets no limit.

    Never among them are the baseline, the latest night, and one that a process still works on. *nights* are all
    there are, the oldest first.
    """
    safe = {night.name for night in (baseline_of(nights), *nights[-1:]) if night is not None}
    beyond = {night.name for night in (nights[: max(0, len(nights) - count)] if count is not None else ())}
    if days is not None:
        oldest = now - timedelta(days=days)
        beyond |= {night.name for night in nights if datetime.fromisoformat(night.state.started) < oldest}
    return tuple(night for night in nights if night.name in beyond - safe and not night.is_running())


def remove(nights: Sequence[Night]) -> None:
    """Delete nights: each is out of sight at once, and whoever is killed at it leaves no half night."""
    for night in nights:
        going = night.folder.with_name(f"{_GOING}{night.name}")
        night.folder.rename(going)
        shutil.rmtree(going)


def sweep(folder: Path) -> None:
    """Finish what a killed process had begun to delete; the caller holds the folder's lock."""
    for leftover in (folder / NIGHTS).glob(f"{_GOING}*"):
        shutil.rmtree(leftover, ignore_errors=True)
