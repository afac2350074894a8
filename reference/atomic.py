"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from reference.shape import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def replacing(goal: Path, *, force: bool) -> Iterator[Path]:
    """Give a path at which to make a file or a folder; it becomes *goal* when the block ends without an error.

    Until then it lies in a hidden folder beside *goal*, which is removed on every way out but a kill.

    Args:
        goal: what shall appear.
        force: replace what is there. A folder is replaced only where it holds files alone, ``config.json`` among
            them: nobody loses a home folder to a slip of the finger.

    Raises:
        CheckpointError: *goal* exists and *force* is not set, or it cannot be written.
    """
    _check_free(goal, force=force)
    try:
        workshop = Path(tempfile.mkdtemp(dir=goal.parent, prefix=f".{goal.name}-", suffix=".partial"))
    except OSError as error:
        raise CheckpointError(f"{goal}: cannot be written: {error.strerror}") from error
    try:
        made = workshop / goal.name
        yield made
        _check_free(goal, force=force)
        if goal.is_dir():
            goal.rename(workshop / "old")
        made.replace(goal)
    except OSError as error:
        raise CheckpointError(f"{goal}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _check_free(goal: Path, *, force: bool) -> None:
    try:
        found = os.lstat(goal)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"{goal}: cannot be written: {error.strerror}") from error
    if not force:
        raise CheckpointError(f"{goal}: exists already; choose another name, or --force to replace it")
    if stat.S_ISDIR(found.st_mode):
        entries = list(os.scandir(goal))
        whole = all(entry.is_file() for entry in entries)
        if not whole or not any(entry.name == "config.json" for entry in entries):
            raise CheckpointError(f"{goal}: is a folder, and not of a checkpoint's files alone; remove it yourself")
    elif not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{goal}: is no regular file; remove it yourself")
