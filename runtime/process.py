"""The caller's side of a worker process: it asks, waits, and turns whatever happens there into typed faults."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from runtime import faults
from runtime.framing import FramingError, Message, encode, receive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WORKER = (sys.executable, "-m", "runtime.worker")

_KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LANG")
_EXIT_WITHIN_S = 60.0
_LAST_WORDS_BYTES = 4096
_LAST_WORDS_LINES = 20
_NO_MEMORY_SIGNS = (
    "Memory exhausted",  # libbmlib on the simulator
    "No memory in device mem",  # libbmlib
    "bm_malloc_device_byte failed",  # libbmrt
    "bm_alloc_gmem failed",  # driver
    "device mem alloc failed",  # libbmrt
)
_BROKEN_BMODEL_SIGN = "is broken"  # libbmrt, of a file whose description does not hold together
_LIBRARY_GAVE_UP = 255


class WorkerProcess:
    """A running worker. It has a process group of its own, so Ctrl-C reaches it only through us.

    The kernel kills it when the thread that started it ends.
    """

    def __init__(
        self, *, timeout_s: float, pausing: bool, variables: Mapping[str, str], command: Sequence[str] = WORKER
    ) -> None:
        """Start a worker.

        Args:
            timeout_s: limit for every single request.
            pausing: stop the worker between requests. The simulator needs it: its threads never cease to spin.
            variables: what it finds in its environment, beyond where to look for programs and temporary files.
            command: what to start; it must speak runtime.framing.
        """
        self._timeout_s = timeout_s
        self._pausing = pausing
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object, has no name to clean up
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                cwd="/",
                env={**environment, **variables, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
                start_new_session=True,
            )
        except BaseException:
            self._log.close()
            raise
        self._log_read = 0
        self._alive = True
        self._requests = cast("IO[bytes]", self._process.stdin)
        self._replies = cast("IO[bytes]", self._process.stdout)
        os.set_blocking(self._requests.fileno(), False)
        os.set_blocking(self._replies.fileno(), False)

    @property
    def alive(self) -> bool:
        """Whether it still takes requests."""
        return self._alive

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def request(self, doing: str, payloads: Sequence[bytes] = (), **fields: Any) -> Message:
        """Ask the worker and wait for its reply; *doing* tells a human what was under way when it failed.

        Raises:
            WorkerDied: it ended, or wrote something that is no message.
            WorkerHung: it did not answer in time and was killed.
            OutOfDeviceMemory: it ended, and its last words tell of memory.
            RuntimeFault: of any class: the worker's own reply.
        """
        if not self._alive:
            raise faults.WorkerDied(f"{doing}: the worker has ended before; a new one is needed")
        deadline = time.monotonic() + self._timeout_s
        self._log_read = os.fstat(self._log.fileno()).st_size
        try:
            if self._pausing:
                self._process.send_signal(signal.SIGCONT)
            self._send(encode(fields, payloads), deadline)
            reply = receive(lambda count: self._receive(count, deadline))
            if self._pausing:
                self._process.send_signal(signal.SIGSTOP)
        except (EOFError, BrokenPipeError, FramingError) as error:
            raise self._death(doing, error) from error
        except TimeoutError as error:
            raise self._hang(f"{doing}: no answer within {self._timeout_s:g} s") from error
        except BaseException:  # Ctrl-C: this reply would be taken for the next request's
            self.kill()
            raise
        if "fault" in reply.fields:
            kind: type[faults.RuntimeFault] = getattr(faults, reply.fields["fault"])
            raise kind(self._with_last_words(f"{doing}: {reply.fields['message']}"), **reply.fields["details"])
        return reply

    def close(self) -> None:
        """Let the worker give its device back and end; closing twice does nothing.

        Raises:
            WorkerDied: it did not end well, for example because device memory leaked.
            WorkerHung: it did not end in time, and was killed.
        """
        if not self._alive:
            return
        try:
            self.request("closing the device", do="close")
            if self._pausing:
                self._process.send_signal(signal.SIGCONT)
            self._requests.close()
            if self._process.wait(_EXIT_WITHIN_S):
                raise self._death("ending the worker", None)
        except subprocess.TimeoutExpired as error:
            raise self._hang("the worker closed its device but did not end") from error
        finally:
            self.kill()

    def kill(self) -> None:
        """End the worker and its process group at once; what it left on the device is the driver's to clean."""
        self._alive = False
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # stuck in the driver: it goes when that lets go of it
                self._process.wait(_EXIT_WITHIN_S)
        self._requests.close()
        self._replies.close()
        self._log.close()

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            _wait(self._requests, select.POLLOUT, deadline)
            with suppress(BlockingIOError):
                view = view[os.write(self._requests.fileno(), view) :]

    def _receive(self, count: int, deadline: float) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            _wait(self._replies, select.POLLIN, deadline)
            read = os.readv(self._replies.fileno(), [view])
            if not read:
                raise EOFError
            view = view[read:]
        return bytes(data)

    def _death(self, doing: str, error: Exception | None) -> faults.RuntimeFault:
        """Tell how the worker died, and bury it."""
        if isinstance(error, FramingError):
            code, how = None, f"{error}; so the worker was killed"
        else:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_WITHIN_S)
            code = self._process.poll()
            how = f"the worker {_in_words(code)}"
        message = self._with_last_words(f"{doing}: {how}")
        self.kill()
        if any(sign in message for sign in _NO_MEMORY_SIGNS):
            return faults.OutOfDeviceMemory(message)
        if _BROKEN_BMODEL_SIGN in message:
            return faults.BadBmodel(message)
        return faults.WorkerDied(message, returncode=code)

    def _hang(self, message: str) -> faults.WorkerHung:
        message = self._with_last_words(f"{message}, so it was killed")
        self.kill()
        return faults.WorkerHung(message)

    def _with_last_words(self, message: str) -> str:
        """Add the end of what worker and libraries printed during this request."""
        log = self._log.fileno()
        start = max(self._log_read, os.fstat(log).st_size - _LAST_WORDS_BYTES)
        end = os.pread(log, _LAST_WORDS_BYTES, start)  # not read(): the worker writes where the file's position is
        lines = end.decode(errors="replace").splitlines()[-_LAST_WORDS_LINES:]
        return "\n  ".join([message, "last words of the worker and its libraries:", *lines]) if lines else message


def _wait(pipe: IO[bytes], event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _in_words(code: int | None) -> str:
    if code is None:
        return "closed its output and went on running"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name} ({signal.strsignal(-code)})"
    if code == _LIBRARY_GAVE_UP:
        return f"exited with code {code}, as the vendor's libraries do when an assertion of theirs fails"
    return f"exited with code {code}"
