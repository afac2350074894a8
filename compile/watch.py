"""Tells the two parts of one tool's work apart while it runs: times, memory and limits of each.

``model_deploy`` lowers and generates code in one go. Run as two tools, each would load the compiler and read the graph
again, seconds of every compile; a file that appears between the two costs nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_EVERY_S = 0.1
_FIELD = "VmHWM:"  # the peak of one process, which a process of its own for each step makes the peak of the step


class TwoParts:
    """Watches a tool whose second part has begun once a file that fits *sign* is in its folder.

    Attributes:
        seconds: wall time of both parts; the second's is 0 where it did not begin.
        peak_bytes: largest resident set of one process, in each part.
        overdue: whether a part exceeded its limit, so that the tool was killed.
    """

    def __init__(self, folder: Path, sign: str, *, limit_s: float, then: Callable[[], None]) -> None:
        """*then* is called as the second part begins, in another thread; *limit_s* is each part's."""
        self.seconds = [0.0, 0.0]
        self.peak_bytes = [0, 0]
        self.overdue = False
        self._folder, self._sign, self._limit_s, self._then = folder, sign, limit_s, then

    @contextmanager
    def running(self, pid: int) -> Iterator[None]:
        """While the tool runs; *pid* leads its process group."""
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(pid, over), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _watch(self, pid: int, over: threading.Event) -> None:
        part, began = 0, time.monotonic()
        while True:
            ended = over.wait(_EVERY_S)
            now = time.monotonic()
            if part == 0 and any(self._folder.glob(self._sign)):
                part, began = 1, now
                self._then()
            self.seconds[part] = now - began
            if ended:
                return
            self.peak_bytes[part] = max(self.peak_bytes[part], _peak_bytes(pid))
            if self.seconds[part] > self._limit_s:
                self.overdue = True
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)


def _peak_bytes(pid: int) -> int:
    """The largest peak of the processes that a tool has now."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return 0
    return max((peak_of(child.pid) for child in children), default=0)


def peak_of(pid: int | str) -> int:
    """The largest resident set that a process has had, in bytes; 0 where that is not told."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:  # noqa: PTH123 - read very often
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(_FIELD)), 0)
    except (OSError, ValueError, IndexError):
        return 0
