"""Waiting for the other side of a pipe, awake for the first moment. Runs on Python 3.8.

A process that sleeps until a message arrives is woken tens of microseconds later, the more so when its core has gone to
sleep as well. Between two steps of a decode loop that would be most of what worker and session cost, so both sides
look again and again before they sleep.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import select

_AWAKE_S = 200e-6


def ready(poll: select.poll, timeout_s: float | None) -> bool:
    """Whether something came to pass that *poll* looks for, within *timeout_s*; None waits for ever."""
    if poll.poll(0):
        return True
    if len(os.sched_getaffinity(0)) > 1:  # on a single core, the other side could not go on
        end = time.monotonic() + (_AWAKE_S if timeout_s is None else min(_AWAKE_S, timeout_s))
        while time.monotonic() < end:
            if poll.poll(0):
                return True
    return bool(poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))
