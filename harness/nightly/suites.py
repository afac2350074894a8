"""Runs the suites in a process of their own, which ends in order whatever ends this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from harness.nightly.nights import LOCK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

_ROOT = Path(__file__).parents[2]

_PATIENCE_S = 60.0
"""How long the suites may take to end after Ctrl-C: a step of the simulator, and closing the device."""

# Stands between us and the command, and gives it one Ctrl-C at most: pytest takes a second one for impatience, and
# leaves its run as it is. The kernel asks for it where our process dies (1 = PR_SET_PDEATHSIG), and asks once for each
# thread that our process still has. The command hears Ctrl-C even where a shell told us not to. The night's lock goes
# along: it is free when the last of the suites is gone.
_SUPERVISOR = """
import ctypes, fcntl, os, signal, sys
parent, lock, *command = sys.argv[1:]
asked = []
def ask(number, _frame):
    if not asked:
        asked.append(number)
        os.kill(process, number)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
signal.signal(signal.SIGINT, ask)
ctypes.CDLL(None).prctl(1, signal.SIGINT)
if os.getppid() != int(parent):
    sys.exit("the process that started the suites is gone")
file = os.open(lock, os.O_RDWR)
fcntl.flock(file, fcntl.LOCK_EX)
os.set_inheritable(file, True)
process = os.posix_spawn(command[0], command, os.environ, setsigmask=(), setsigdef=(signal.SIGINT,))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def suites_command(runs: Path, arguments: Sequence[str]) -> list[str]:
    """The command that runs the suites into the folder *runs*, whatever the present folder is."""
    pytest = [sys.executable, "-m", "pytest", str(_ROOT / "suites"), "--rootdir", str(_ROOT)]
    return [*pytest, "-c", str(_ROOT / "pyproject.toml"), "--runs", str(runs.resolve()), *arguments]


def run_suites(night: Path, command: Sequence[str]) -> int:
    """Run *command* to its end and return its exit status; what it says goes where ours does.

    Where this is left by an exception, the command gets a Ctrl-C, so that it closes its device and marks its run as
    interrupted. It is killed, with all in its process group, where it does not end within a minute.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _SUPERVISOR, str(os.getpid()), str(night / LOCK), *command],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait()
    except BaseException:
        _end(process)
        raise
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left behind


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE_S)
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let a service manager's stop take the same way out as Ctrl-C."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
