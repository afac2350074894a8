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

from runtime import faults, window
from runtime.framing import FramingError, Message, encode, receive
from runtime.waiting import ready

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WORKER = (sys.executable, "-m", "runtime.worker")

_KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LANG")
_EXIT_WITHIN_S = 60.0
_SILENT_AFTER_S = 3.0  # three signs of life missed
_AT_ONCE_BYTES = 1 << 16
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
            command: what to start; it must speak runtime.framing. A process of this machine shares the window with
                us; one that the command starts on another machine gets its payloads through the pipe.
        """
        self._timeout_s = timeout_s
        self._pausing = pausing
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object, has no name to clean up
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        memory = window.create()
        try:
            self._window: window.Window | None = window.Window(memory)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                cwd="/",
                env={
                    **environment,
                    **variables,
                    "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
                    window.VARIABLE: window.describe(memory),
                },
                pass_fds=(memory,),
                start_new_session=True,
            )
        except BaseException:
            self._log.close()
            raise
        finally:
            os.close(memory)
        self._log_read = 0
        self._alive = True
        self._left = False
        self._greeted = False
        self._sees_window = False
        self._last_sign = time.monotonic()
        self._received = bytearray()
        self._requests = cast("IO[bytes]", self._process.stdin)
        self._replies = cast("IO[bytes]", self._process.stdout)
        os.set_blocking(self._requests.fileno(), False)
        os.set_blocking(self._replies.fileno(), False)
        self._writable, self._readable = select.poll(), select.poll()
        self._writable.register(self._requests, select.POLLOUT)
        self._readable.register(self._replies, select.POLLIN)

    @property
    def alive(self) -> bool:
        """Whether it still takes requests."""
        return self._alive and not self._left

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def request(self, doing: str, payloads: Sequence[bytes] = (), **fields: Any) -> Message:
        """Ask the worker and wait for its reply; *doing* tells a human what was under way when it failed.

        The reply's payloads are valid until the next request: they may lie in the memory that both processes see.

        Raises:
            WorkerDied: it ended, or wrote something that is no message.
            WorkerHung: it did not answer in time and was killed.
            OutOfDeviceMemory: it ended, and its last words tell of memory.
            RuntimeFault: of any class: the worker's own reply.
        """
        if not self._greeted:
            self._greeted = True
            self._sees_window = self._ask("starting the worker", {"do": "hello"}, ()).fields["window"]
        return self._ask(doing, fields, payloads)

    def _ask(self, doing: str, fields: dict[str, Any], payloads: Sequence[bytes]) -> Message:
        if not self.alive:
            raise faults.WorkerDied(f"{doing}: the worker has ended before; a new one is needed")
        self._last_sign = time.monotonic()
        deadline = self._last_sign + self._timeout_s
        self._log_read = os.fstat(self._log.fileno()).st_size
        shared = self._window if self._sees_window else None
        try:
            if self._pausing:
                self._process.send_signal(signal.SIGCONT)
            self._send(encode(fields, payloads, shared), deadline)
            reply = self._reply(shared, deadline)
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

    def leave(self) -> None:
        """Have the worker give its device back, and let it end by itself; :meth:`close` waits for that.

        The simulator's library takes a second for its end, in which it looks for leaks.

        Raises:
            RuntimeFault: of any class, as :meth:`request` does.
        """
        if not self.alive:
            return
        try:
            self.request("closing the device", do="close")
        except BaseException:
            self.kill()
            raise
        self._left = True
        if self._pausing:
            self._process.send_signal(signal.SIGCONT)
        self._requests.close()

    def close(self) -> None:
        """Let the worker give its device back and end; closing twice does nothing.

        Raises:
            WorkerDied: it did not end well, for example because device memory leaked.
            WorkerHung: it did not end in time, and was killed.
        """
        if not self._alive:
            return
        try:
            self.leave()
            if self._process.wait(_EXIT_WITHIN_S):
                raise self._death("ending the worker", None)
        except subprocess.TimeoutExpired as error:
            raise self._hang("the worker closed its device but did not end") from error
        finally:
            self.kill()

    def kill(self) -> None:
        """End the worker and its process group at once; what it left on the device is the driver's to clean."""
        self._alive = False
        self._window = None  # unmapped with the last view of it
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
            try:
                view = view[os.write(self._requests.fileno(), view) :]
            except BlockingIOError:
                _wait(self._writable, deadline)

    def _reply(self, shared: window.Window | None, deadline: float) -> Message:
        while True:
            message = receive(lambda count: self._receive(count, deadline), shared)
            self._last_sign = time.monotonic()
            if message.fields != {"alive": True}:
                return message

    def _receive(self, count: int, deadline: float) -> bytes:
        while len(self._received) < count:
            _wait(self._readable, deadline)
            part = os.read(self._replies.fileno(), max(count - len(self._received), _AT_ONCE_BYTES))
            if not part:
                raise EOFError
            self._received += part
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

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
        silent_s = time.monotonic() - self._last_sign
        if silent_s <= _SILENT_AFTER_S:
            how = "so it is alive, and a call into the libraries does not return"
        else:
            how = "though one is due every second: it is stopped, gets no processor time, or cannot be reached"
        message = self._with_last_words(
            f"{message}, so it was killed; its last sign of life came {silent_s:.1f} s before, {how}"
        )
        self.kill()
        return faults.WorkerHung(message, silent_s=silent_s)

    def _with_last_words(self, message: str) -> str:
        """Add the end of what worker and libraries printed during this request."""
        log = self._log.fileno()
        start = max(self._log_read, os.fstat(log).st_size - _LAST_WORDS_BYTES)
        end = os.pread(log, _LAST_WORDS_BYTES, start)  # not read(): the worker writes where the file's position is
        lines = end.decode(errors="replace").splitlines()[-_LAST_WORDS_LINES:]
        return "\n  ".join([message, "last words of the worker and its libraries:", *lines]) if lines else message


def _wait(poll: select.poll, deadline: float) -> None:
    if not ready(poll, deadline - time.monotonic()):
        raise TimeoutError


def _in_words(code: int | None) -> str:
    if code is None:
        return "closed its output and went on running"
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL: by somebody, or by the kernel for lack of memory on the host (see dmesg)"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name} ({signal.strsignal(-code)})"
    if code == _LIBRARY_GAVE_UP:
        return f"exited with code {code}, as the vendor's libraries do when an assertion of theirs fails"
    return f"exited with code {code}"
