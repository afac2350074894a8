"""A folder in the cache that appears whole or not at all, and is made once, however many processes ask for it."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import filelock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


def make_once(folder: Path, load: Callable[[Path], T | None], make: Callable[[Path], T]) -> T:
    """Load what is in *folder*, or make it.

    Args:
        folder: where it belongs; its name is the key.
        load: what is there, None where that is nothing whole.
        make: fill an empty working folder, which becomes *folder*, and say what will be there. If it raises, nothing
            is kept, unless it has moved the working folder elsewhere.
    """
    if (found := load(folder)) is not None:
        return found
    parent, key = folder.parent, folder.name
    parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(parent / f".{key}.lock"):
        if (found := load(folder)) is not None:  # made by another process while this one waited
            return found
        _sweep(parent, key)
        with _working_folder(parent, key) as work:
            made = make(work)
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
    return made


def _sweep(parent: Path, key: str) -> None:
    """Remove what a killed process left behind of this key; the caller holds the key's lock."""
    for leftover in parent.glob(f".{key}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _working_folder(parent: Path, key: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already where it was renamed
