"""The compiler's interpreters of its dialects: a graph computed on this machine's processor, by the compiler's word."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from compile.toolchain import Toolchain

_WORKER = Path(__file__).with_name("interpreter_worker.py")
_LAST_WORDS_BYTES = 4096
_LAST_WORDS_LINES = 20


class InterpreterError(RuntimeError):
    """The interpreter's process died or hung: says at what, how, and its last words."""


class Interpreter:
    """One MLIR file, loaded in a process of the toolchain's own Python. A context manager, used from one thread.

    The process has a group of its own, so Ctrl-C reaches it only through us; the kernel kills it when the thread that
    started it ends.
    """

    def __init__(self, toolchain: Toolchain, mlir: Path, *, timeout_s: float = 600.0) -> None:
        """Start the process and wait until the file is loaded.

        Args:
            toolchain: the compiler that made the file.
            mlir: from :func:`compile.lowering.lowered`; its weights lie beside it.
            timeout_s: limit for loading and for every single run.

        Raises:
            InterpreterError: the file did not load.
        """
        self._timeout_s = timeout_s
        self._mlir = mlir
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object, has no name to clean up
        try:
            self._process = subprocess.Popen(
                [str(toolchain.python), "-I", str(_WORKER), str(toolchain.package / "python"), mlir.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                cwd=mlir.parent,
                env=toolchain.environment(),
                start_new_session=True,
            )
        except BaseException:
            self._log.close()
            raise
        self._requests = cast("IO[bytes]", self._process.stdin)
        self._replies = cast("IO[bytes]", self._process.stdout)
        with self._watched("loading"):
            self._receive()

    def __enter__(self) -> Self:
        """Return the interpreter."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Compute the graph once.

        Args:
            inputs: token ids and states, in the graph's order and shapes.

        Returns:
            Logits and the next states, float32, in the graph's order; see :func:`compile.export.export`.

        Raises:
            InterpreterError: the process died, took too long, or is closed; it is of no use any more.
        """
        if self._log.closed:
            raise InterpreterError(f"the interpreter of {self._mlir} is closed; open another one")
        packed = io.BytesIO()
        np.savez(packed, *inputs)
        with self._watched("running"):
            self._requests.write(packed.tell().to_bytes(8, "little"))
            self._requests.write(packed.getbuffer())
            self._requests.flush()
            return self._receive()

    def close(self) -> None:
        """End the process, which holds nothing worth a gentle end; closing twice does nothing."""
        self._kill()
        self._process.wait()
        with suppress(BrokenPipeError):  # what could not be written is of no interest any more
            self._requests.close()
        self._replies.close()
        self._log.close()

    def _kill(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    @contextmanager
    def _watched(self, doing: str) -> Iterator[None]:
        """Limit the time of an exchange, and let none that failed be followed by another."""
        timed_out = threading.Event()

        def give_up() -> None:
            timed_out.set()
            self._kill()

        timer = threading.Timer(self._timeout_s, give_up)
        timer.start()
        try:
            yield
        except (EOFError, BrokenPipeError) as error:
            status = self._process.wait()
            how = f"no answer within {self._timeout_s:g} s" if timed_out.is_set() else _in_words(status)
            message = "\n  ".join([f"{doing} {self._mlir}: {how}", *self._last_words()])
            self.close()
            raise InterpreterError(message) from error
        except BaseException:  # Ctrl-C: this reply would be taken for the next request's
            self.close()
            raise
        finally:
            timer.cancel()

    def _receive(self) -> list[np.ndarray]:
        data = self._read(int.from_bytes(self._read(8), "little"))
        with np.load(io.BytesIO(data)) as arrays:
            return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]

    def _read(self, count: int) -> bytes:
        data = self._replies.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def _last_words(self) -> list[str]:
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        return self._log.read().decode(errors="replace").splitlines()[-_LAST_WORDS_LINES:]


def _in_words(status: int) -> str:
    if status < 0:
        return f"the interpreter died of {signal.Signals(-status).name}; its last words:"
    return f"the interpreter exited with status {status}; its last words:"
