"""The compiler's tools for many small graphs: loaded once, then a fork for each call. See ``tool_server_worker.py``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, cast

from compile.process import Finished

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from compile.toolchain import Toolchain

_WORKER = Path(__file__).with_name("tool_server_worker.py")
_LOADING_S = 300.0
_GRACE_S = 30.0  # beyond a call's own limit, within which the worker answers
_LAST_WORDS_BYTES = 2048


class ToolServerError(RuntimeError):
    """The process that has the tools loaded died or hung; a tool that does so is an answer, not this."""


class ToolServer:
    """One process of the toolchain's Python with its tools loaded. A context manager, used from one thread.

    The kernel kills it when the thread that started it ends; a call's fork and the programs that this has started are
    ended with it.
    """

    def __init__(self, toolchain: Toolchain) -> None:
        """Start it, and wait until the tools are loaded.

        Raises:
            ToolServerError: they do not load.
        """
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object, has no name to clean up
        try:
            self._process = subprocess.Popen(
                [str(toolchain.python), "-I", str(_WORKER), str(toolchain.package)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=toolchain.environment(),
                start_new_session=True,
                text=True,
            )
        except BaseException:
            self._log.close()
            raise
        self._requests = cast("IO[str]", self._process.stdin)
        self._replies = cast("IO[str]", self._process.stdout)
        self._receive(_LOADING_S)

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    def run(self, tool: str, arguments: Sequence[str], *, folder: Path, log: Path, timeout_s: float) -> Finished:
        """Run one tool in *folder*; append all that it says to *log*.

        Args:
            tool: ``model_transform``, ``model_deploy``; or ``interpret``, with an MLIR file of either dialect and
                ``.npz`` files of its inputs and outputs, arrays ``arr_0``, ``arr_1``, … in the graph's order.
            arguments: the tool's.
            folder: where it works; made before.
            log: a file.
            timeout_s: after which the tool is killed.

        Raises:
            ToolServerError: the server is of no use any more.
        """
        request = {
            "tool": tool,
            "arguments": list(arguments),
            "folder": str(folder.absolute()),
            "log": str(log.absolute()),
            "timeout_s": timeout_s,
        }
        with suppress(BrokenPipeError):  # the missing reply tells
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        return Finished(**self._receive(timeout_s + _GRACE_S))

    def close(self) -> None:
        """End the process; closing twice does nothing."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(BrokenPipeError):
            self._requests.close()
        self._replies.close()
        self._log.close()

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        timer = threading.Timer(timeout_s, self._process.kill)
        timer.start()
        try:
            line = self._replies.readline()
        except BaseException:  # Ctrl-C: this reply would be taken for the next request's
            self.close()
            raise
        finally:
            timer.cancel()
        if line.endswith("\n"):
            return cast("dict[str, Any]", json.loads(line))
        status = self._process.wait()
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        words = self._log.read().decode(errors="replace")
        self.close()
        raise ToolServerError(f"the process with the compiler's tools ended with status {status}; it said:\n{words}")
