"""A file as bytes in memory, read on demand; whatever lies outside it or cannot be a weight is refused."""

from __future__ import annotations

import math
import mmap
import os
import re
import stat
from typing import TYPE_CHECKING

import torch

from reference.shape import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

LONGEST_HEADER = 4 << 20
"""Bytes that a list of tensors may take; those of the largest releases take a tenth of it."""

_MOST_AXES = 4
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,200}")


class MappedFile:
    """A regular file; its tensors share memory with it, so a large checkpoint is held once, by the system's cache."""

    def __init__(self, path: Path) -> None:
        """Map *path*.

        Raises:
            CheckpointError: it cannot be read, is no regular file, or is empty.
        """
        self.path = path
        try:
            # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(f"{path}: is no regular file; give a checkpoint's file")
            if not found.st_size:
                raise CheckpointError(f"{path}: is empty, but should hold a checkpoint")
            # Private and writable: torch warns of read-only memory; what is written never reaches the file.
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        finally:
            os.close(descriptor)
        self.size = len(self._map)
        self._taken = 0

    def take(self, start: int, count: int, what: str) -> memoryview:
        """*count* bytes from *start*.

        Raises:
            CheckpointError: the file ends before.
        """
        if start < 0 or count < 0 or start + count > self.size:
            raise CheckpointError(
                f"{self.path}: truncated: {what} needs {count} bytes from byte {start}, the file has {self.size}"
            )
        return memoryview(self._map)[start : start + count]

    def tensor(self, name: str, dtype: torch.dtype, shape: Sequence[int], start: int) -> Tensor:
        """The tensor whose data begin at byte *start*, row after row; it shares memory with the file.

        Raises:
            CheckpointError: it has no elements, reaches beyond the file, or the file's tensors would take more memory
                than the file has bytes.
        """
        self.check_shape(name, shape)
        count = math.prod(shape)
        size = count * dtype.itemsize
        data = self.take(start, size, name)
        self.charge(name, size)
        if start % dtype.itemsize:  # not every machine reads numbers in place that lie across their alignment
            data = memoryview(bytearray(data))
        return torch.frombuffer(data, dtype=dtype, count=count).view(*shape)

    def check_shape(self, name: str, shape: object) -> None:
        """Refuse a name or a shape that no weight has.

        Raises:
            CheckpointError: no name, no sequence of one to four sizes, or a size below 1 or above the file's.
        """
        check_name(name, self.path)
        sizes = list(shape) if isinstance(shape, tuple | list) else []
        if not 0 < len(sizes) <= _MOST_AXES or any(type(size) is not int for size in sizes):
            raise CheckpointError(f"{self.path}: {name} has no shape of 1 to {_MOST_AXES} whole numbers")
        if not 0 < min(sizes) <= max(sizes) <= self.size:
            raise CheckpointError(
                f"{self.path}: {name} has shape {tuple(sizes)}, but should have sizes from 1 to the file's {self.size}"
            )

    def charge(self, name: str, size: int) -> None:
        """Count a tensor's *size* in bytes; tensors that lie over each other would let a small file fill the memory."""
        self._taken += size
        if self._taken > self.size:
            raise CheckpointError(
                f"{self.path}: up to {name}, tensors take {self._taken} bytes, but the file has {self.size}: "
                "tensors that share data are not read, each needs its own"
            )


def check_name(name: object, path: Path) -> None:
    """Refuse what is no tensor's name.

    Raises:
        CheckpointError: *name* is no string of up to 200 letters, digits, dots, hyphens and underscores.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CheckpointError(
            f"{path}: {shown(name)} is no tensor's name; up to 200 letters, digits, dots, hyphens and underscores are"
        )


def shown(value: object) -> str:
    """*value* for an error message: short and without control characters, whatever a file puts there."""
    if isinstance(value, str):
        return ascii(value[:80])
    return ascii(value)[:80] if isinstance(value, int | float | None) else f"a {type(value).__name__}"
