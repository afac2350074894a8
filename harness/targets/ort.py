"""The exported graphs on ONNX Runtime: what the compiler is given, before it does anything."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from compile.export import export
from harness.targets.base import Output, StateArrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compile.dims import Arrays
    from compile.graphs.model import Rwkv7


class OnnxRuntime:
    """The decode graph and graphs of several tokens, in float32: every position."""

    def __init__(self, arrays: Arrays, variant: type[Rwkv7], chunk_lengths: Sequence[int] = (16,)) -> None:
        """Export one graph for each chunk length, and the decode graph for the tail."""
        self._nets: dict[int, onnxruntime.InferenceSession] = {}
        for T in sorted({1, *chunk_lengths}, reverse=True):
            graph = variant(arrays, T=T, every_position=True)
            self._shapes = [shape for _, shape in graph.dims.state_shapes()]
            with tempfile.TemporaryDirectory(prefix="rwkv-tpu-") as folder:
                path = Path(folder) / "model.onnx"
                export(graph, path)
                self._nets[T] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(self, tokens: Sequence[int], state: StateArrays | None = None) -> Output:
        """Logits of every position, whole chunks first, the tail token by token; nothing is ever padded."""
        arrays = [np.zeros(shape, np.float32) for shape in self._shapes]
        if state is not None:
            arrays = [array.reshape(zeros.shape) for array, zeros in zip(state, arrays, strict=True)]
        rows: list[np.ndarray] = []
        start = 0
        for T, net in self._nets.items():
            names = [given.name for given in net.get_inputs()]
            while len(tokens) - start >= T:
                chunk = np.array([tokens[start : start + T]], np.int32)
                logits, *arrays = net.run(None, dict(zip(names, [chunk, *arrays], strict=True)))
                rows.append(logits.reshape(T, -1))
                start += T
        after = [array if i % 3 == 1 else array.reshape(-1) for i, array in enumerate(arrays)]
        return Output(tuple(range(len(tokens))), np.concatenate(rows), after)
