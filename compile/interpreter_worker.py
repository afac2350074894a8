"""Started by a toolchain's own Python 3.10: loads one MLIR file and computes it, request by request.

``python -I interpreter_worker.py FOLDER_OF_PYMLIR MLIR``, in the folder of the weights. On both pipes a message is 8
bytes, the length little-endian, and an ``.npz`` of the arrays ``arr_0``, ``arr_1``, …: a request has the graph's inputs
in their order, a reply its outputs. The first message is a reply without arrays and says that the file is loaded. The
end of the requests is the end of the process, and so is every error, which goes to stderr.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import os
import signal
import sys
from typing import IO, Any

import numpy as np

_PR_SET_PDEATHSIG = 1


def main(package: str, mlir: str) -> None:
    """Serve until the requests end."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The compiler's libraries print to stdout, which is where our replies go: give them stderr.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path.append(package)
    pymlir = importlib.import_module("pymlir")
    pymlir.set_mem_mode("value_mem")  # keep every tensor's value, as the compiler's own comparisons do
    module = pymlir.module()
    module.load(mlir)
    if hasattr(module, "set_progress_silent"):  # releases differ; a bar for every run would fill the log
        module.set_progress_silent(True)
    _send(replies, [])
    while (inputs := _receive(sys.stdin.buffer)) is not None:
        _send(replies, _compute(module, inputs))


def _compute(module: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    wanted = [tuple(module.get_tensor(name).shape) for name in module.input_names]
    given = [array.shape for array in inputs]
    if wanted != given:
        raise ValueError(f"expected inputs of shapes {wanted}, got {given}")
    for name, array in zip(module.input_names, inputs, strict=True):
        # It takes float32 alone, and makes integers of them where the graph wants such: exact up to 2**24.
        module.set_tensor(name, np.ascontiguousarray(array, np.float32), array.shape)
    module.invoke()
    return [module.get_tensor(name) for name in module.output_names]


def _receive(requests: IO[bytes]) -> list[np.ndarray] | None:
    length = requests.read(8)
    if len(length) < 8:
        return None
    with np.load(io.BytesIO(requests.read(int.from_bytes(length, "little")))) as arrays:
        return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]


def _send(replies: IO[bytes], arrays: list[np.ndarray]) -> None:
    packed = io.BytesIO()
    np.savez(packed, *arrays)
    replies.write(packed.tell().to_bytes(8, "little"))
    replies.write(packed.getbuffer())
    replies.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
