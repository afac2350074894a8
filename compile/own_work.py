"""A time limit and the peak memory of work that this process does itself."""

from __future__ import annotations

import ctypes
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from compile.watch import peak_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAST_S = 0.001


class OwnTimeoutError(RuntimeError):
    """The limit was exceeded."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End what this thread does once it has taken so long.

    The interpreter raises the error between two of its own instructions: a single call into a library ends first.

    Raises:
        OwnTimeoutError: it has taken so long.
    """
    thread = ctypes.c_ulong(threading.get_ident())
    lock, over = threading.Lock(), False
    raised = False

    def end() -> None:
        nonlocal raised
        with lock:
            if not over:
                raised = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(OwnTimeoutError))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
        with lock:
            over = True
        while raised:  # it is on its way, and must not arrive outside
            time.sleep(_LEAST_S)
    finally:
        timer.cancel()


def forget_peak() -> None:
    """Have the kernel begin the peak of this process's resident set anew, where it lets us."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def own_peak_bytes() -> int:
    """That peak, in bytes."""
    return peak_of("self")
