"""Memory that a process and its worker both see: payloads lie there and do not pass the pipe. Runs on Python 3.8.

It is a file without a name that the worker inherits when it is started as a process of this machine. The kernel takes
it back when the last of the two ends, however that comes about. A worker that is reached through another machine
inherits nothing, finds no such file, and its payloads pass the pipe.

At any time the window holds the payloads of one message, one after the other from its beginning on.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZE_BYTES = 256 << 20
"""Of address space: memory is taken only for what is written, and larger messages pass the pipe."""

VARIABLE = "RUNTIME_WINDOW"
"""Environment variable that tells the worker which of its open files it is."""

_ALIGNMENT = 64


class Window:
    """The memory, as one of the two processes sees it."""

    def __init__(self, descriptor: int) -> None:
        """Map the open file *descriptor*, which may be closed afterwards."""
        self._whole = memoryview(mmap.mmap(descriptor, SIZE_BYTES))
        self._last: Sequence[memoryview] | None = None

    def places(self, sizes: Sequence[int]) -> list[memoryview] | None:
        """Where payloads of *sizes* bytes lie; None where they do not fit. Valid until the next message."""
        starts = []
        end = 0
        for size in sizes:
            starts.append(end)
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        if end > SIZE_BYTES:
            return None
        places = [self._whole[start : start + size] for start, size in zip(starts, sizes)]  # noqa: B905 - Python 3.8
        self._last = places
        return places

    def put(self, payloads: Sequence[bytes | memoryview]) -> bool:
        """Let *payloads* lie in the window; where they do not fit, nothing happens and the answer is no.

        They come from outside the window, or are the places that `places` gave last, already filled.
        """
        if payloads is self._last:
            return True
        places = self.places([len(payload) for payload in payloads])
        if places is None:
            return False
        for place, payload in zip(places, payloads):  # noqa: B905 - Python 3.8
            place[:] = payload
        return True


def create() -> int:
    """Make the memory: a file without a name, its descriptor to be closed by the caller."""
    descriptor = os.memfd_create("window")
    try:
        os.ftruncate(descriptor, SIZE_BYTES)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def describe(descriptor: int) -> str:
    """Text for the worker's environment: number and identity of the file."""
    found = os.fstat(descriptor)
    return f"{descriptor}:{found.st_dev}:{found.st_ino}"


def inherited() -> Window | None:
    """Find the window that the environment tells of; None where there is none, or where that file is another."""
    text = os.environ.pop(VARIABLE, "")
    try:
        descriptor = int(text.partition(":")[0])
        if describe(descriptor) != text:
            return None
        window = Window(descriptor)
    except (ValueError, OverflowError, OSError):
        return None
    os.close(descriptor)
    return window
