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


def make_once(
    folder: Path,
    load: Callable[[Path], T | None],
    make: Callable[[Path], T],
    take_over: Callable[[Path, Path], None] = lambda leftover, work: None,  # noqa: ARG005 - nothing is taken over
) -> T:
    """Load what is in *folder*, or make it.

    Args:
        folder: where it belongs; its name is the key.
        load: what is there, None where that is nothing whole.
        make: fill an empty working folder, which becomes *folder*, and say what will be there. If it raises, nothing
            is kept, unless it has moved the working folder elsewhere.
        take_over: called before, with the working folder that a killed process left and the new one; it may move files.
    """
    if (found := load(folder)) is not None:
        return found
    parent, key = folder.parent, folder.name
    parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(parent / f".{key}.lock"):
        if (found := load(folder)) is not None:  # made by another process while this one waited
            return found
        leftovers = [path for path in parent.glob(f".{key}.*") if path.is_dir()]
        with _working_folder(parent, key) as work:
            for leftover in leftovers:
                take_over(leftover, work)
                shutil.rmtree(leftover, ignore_errors=True)
            made = make(work)
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
    return made


@contextmanager
def _working_folder(parent: Path, key: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already where it was renamed
