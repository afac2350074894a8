"""Runs one tool: its output to a log, a time limit, and nothing of it left on any way out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

# Stands between us and the tool: when we are killed, the kernel tells it (1 = PR_SET_PDEATHSIG), and it ends the tool
# with all that the tool has started. Otherwise it ends as the tool does.
_SUPERVISOR = """
import ctypes, os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
status = subprocess.run(sys.argv[1:]).returncode
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a tool ended."""

    status: int  # exit status; negative: the number of the signal that ended it
    seconds: float  # wall time
    peak_bytes: int  # largest resident set of the tool or one of its children
    timed_out: bool

    @property
    def ending(self) -> str:
        """The ending in words."""
        if self.timed_out:
            return f"was stopped at its time limit after {self.seconds:.0f} s"
        if self.status < 0:
            return f"died of {signal.Signals(-self.status).name}"
        return f"exited with status {self.status}"


def run(
    command: Sequence[str],
    *,
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    timeout_s: float,
    on_line: Callable[[str], None] = lambda _: None,
    watch: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Finished:
    """Run a command in *folder*; append the command and all that it says to *log*.

    Args:
        command: program and arguments.
        folder: where it runs.
        log: of all that it says.
        environment: all of its variables.
        timeout_s: after so long it is killed, with all that it started.
        on_line: receives each line that it says.
        watch: entered, with the leader of its process group, while it runs.
    """
    start = time.monotonic()
    timed_out = threading.Event()
    with log.open("a") as kept:
        kept.write(f"$ {' '.join(command)}\n")
        kept.flush()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SUPERVISOR, *command],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

        def kill() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        def give_up() -> None:
            timed_out.set()
            kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.start()
        usage = None
        output = cast("IO[str]", process.stdout)  # there, because of PIPE
        try:
            with watch(process.pid):
                for line in output:
                    kept.write(line)
                    on_line(line)
            _, wait_status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(wait_status)
        finally:
            timer.cancel()
            if usage is None:  # an exception on the way: the tool still runs
                kill()
                process.wait()
            output.close()
    return Finished(
        status=process.returncode,
        seconds=time.monotonic() - start,
        peak_bytes=usage.ru_maxrss * 1024,
        timed_out=timed_out.is_set(),
    )


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log, or what to say where there is none."""
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
