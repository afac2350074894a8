"""The PyPI package ``rwkv`` as a target: a third opinion, by another author.

It runs in a process of its own, because importing it changes torch's global settings and the environment.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from harness.targets.base import Output, StateArrays

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection
    from types import TracebackType

    from reference.checkpoint import Checkpoint

_CLOSE_S = 10.0


class RwkvPackageError(RuntimeError):
    """The package's process failed; says how."""


class RwkvPackage:
    """The package's RWKV-7 in float32 on this machine's processor: every position."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Hand the checkpoint over in a temporary file and wait until it is loaded."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        with tempfile.TemporaryDirectory(prefix="rwkv-tpu-") as folder:
            path = Path(folder) / "model.pth"
            torch.save(dict(checkpoint.tensors), path)
            self._process = context.Process(
                target=_serve, args=(theirs, str(path.with_suffix("")), torch.get_num_threads()), daemon=True
            )
            self._process.start()
            theirs.close()
            self._receive()

    def __enter__(self) -> Self:
        """Return the target."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    def run(self, tokens: Sequence[int], state: StateArrays | None = None) -> Output:
        """Logits of every position, from one call for the whole sequence.

        Raises:
            RwkvPackageError: the package failed.
        """
        with suppress(ConnectionError):  # then there is nothing to receive either, which says more
            self._connection.send((list(tokens), state))
        logits, after = self._receive()
        return Output(tuple(range(len(tokens))), logits, after)

    def close(self) -> None:
        """End the process; closing twice does nothing."""
        self._connection.close()
        self._process.join(_CLOSE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(_CLOSE_S)
            raise RwkvPackageError(f"the package's process ended with status {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            raise RwkvPackageError(f"the package rwkv failed: {type(answer).__name__}: {answer}") from answer
        return answer


def _serve(connection: Connection, model: str, threads: int) -> None:
    """In the process of its own: load, say so, then answer until the other end is closed."""
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
    torch.set_num_threads(threads)
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            from rwkv.model import RWKV  # noqa: PLC0415 - reads the environment set above

            engine = RWKV(model=model, strategy="cpu fp32")
        connection.send(None)
        while True:
            tokens, state = connection.recv()
            # The package writes into the list that it is given.
            before = None if state is None else [torch.from_numpy(array.copy()) for array in state]
            logits, after = engine.forward(tokens, before, full_output=True)
            connection.send((np.atleast_2d(logits.numpy()), [tensor.numpy() for tensor in after]))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the other process says it
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))
