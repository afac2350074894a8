"""Started by a toolchain's own Python 3.10: runs its tools on request, in forks of a process that has them loaded.

``python -I tool_server_worker.py PACKAGE``, the folder of the ``tpu_mlir`` package. A request is a line of JSON with
``tool`` (a file of ``python/tools``, or ``interpret``), ``arguments``, ``folder``, ``log`` and ``timeout_s``; the reply
a line with ``status`` (negative: a signal's number), ``seconds``, ``peak_bytes`` and ``timed_out``. The first reply
has ``ready``. The end of the requests is the end of the process.

Most of what a tool takes for a small graph is the loading of its Python modules, here done once. The rest is as
``tool_runner.py`` has it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from types import FrameType

_PR_SET_PDEATHSIG = 1
_TOOLS = ("model_transform", "model_deploy")


def main(package: Path) -> None:
    """Serve until the requests end."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the tools print while they are loaded
    tools = package / "python" / "tools"
    sys.path[:0] = [str(tools), str(package.parent)]
    importlib.import_module("tpu_mlir")
    parser = importlib.import_module("tpu_mlir.python.utils.mlir_parser")
    parser.Operation.loc = staticmethod(lambda _: "")  # as in tool_runner.py
    for tool in _TOOLS:
        runpy.run_path(str(tools / f"{tool}.py"), run_name="loaded")
    importlib.import_module("transform.OnnxConverter")  # model_transform loads it late, and it takes longest
    _say(replies, {"ready": True})
    for line in sys.stdin:
        _say(replies, _run(tools, json.loads(line)))


def _say(replies: Any, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _run(tools: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Fork, run, wait; kill the fork and all that it has started at the time limit."""
    start = time.monotonic()
    us = os.getpid()
    child = os.fork()
    if child == 0:
        os._exit(_in_child(tools, request, us))
    timed_out = threading.Event()

    def give_up() -> None:
        timed_out.set()
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    timer = threading.Timer(request["timeout_s"], give_up)
    timer.start()
    _, status, usage = os.wait4(child, 0)
    timer.cancel()
    return {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - start,
        "peak_bytes": usage.ru_maxrss * 1024,
        "timed_out": timed_out.is_set(),
    }


def _in_child(tools: Path, request: dict[str, Any], parent: int) -> int:
    """Do what was asked for; returns the exit status."""
    os.setsid()
    signal.signal(signal.SIGTERM, _end_group)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before that was set
        return 1
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(request["folder"])
    faulthandler.enable()
    try:
        if request["tool"] == "interpret":
            _interpret(*request["arguments"])
        else:
            file = str(tools / f"{request['tool']}.py")
            sys.argv = [file, *request["arguments"]]
            runpy.run_path(file, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - becomes the log's last words and an exit status
        traceback.print_exc()
        status = 1
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _end_group(_: int, __: FrameType | None) -> None:
    os.killpg(0, signal.SIGKILL)


def _interpret(mlir: str, inputs: str, outputs: str) -> None:
    """Compute an MLIR file by the compiler's interpreter; arrays ``arr_0``, … in the graph's order, in both files."""
    pymlir = importlib.import_module("pymlir")
    pymlir.set_mem_mode("value_mem")  # keep every tensor's value, as the compiler's own comparisons do
    module = pymlir.module()
    module.load(mlir)
    if hasattr(module, "set_progress_silent"):  # releases differ
        module.set_progress_silent(True)
    with np.load(inputs) as given:
        for i, name in enumerate(module.input_names):
            array = np.ascontiguousarray(given[f"arr_{i}"], np.float32)
            wanted = tuple(module.get_tensor(name).shape)
            if wanted != array.shape:
                raise ValueError(f"input {name} of {mlir}: shape {array.shape}, but the graph has {wanted}")
            module.set_tensor(name, array, array.shape)
    module.invoke()
    np.savez(outputs, *[module.get_tensor(name) for name in module.output_names])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
