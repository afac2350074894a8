"""The exported graphs on ONNX Runtime: what the compiler is given, before it does anything."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime

from compile.dims import Dims
from compile.export import export
from compile.host_embedding import table_of
from compile.stacked_state import is_stacked
from harness.targets.graphs import GraphTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from compile.dims import Arrays
    from compile.graphs.model import Rwkv7


class OnnxRuntime(GraphTarget):
    """The decode graph and graphs of several tokens, in float32: every position."""

    def __init__(self, arrays: Arrays, variant: type[Rwkv7], chunk_lengths: Sequence[int] = (16,)) -> None:
        """Export one graph for each chunk length, and the decode graph for the tail."""
        super().__init__(
            {T: _Net(variant(arrays, T=T, every_position=True)) for T in {1, *chunk_lengths}},
            Dims.of(arrays),
            table_of(variant, arrays),
            stacked=is_stacked(variant),
        )


class _Net:
    def __init__(self, graph: Rwkv7) -> None:
        with tempfile.TemporaryDirectory(prefix="rwkv-tpu-") as folder:
            path = Path(folder) / "model.onnx"
            export(graph, path)
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._names = [given.name for given in self._session.get_inputs()]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        return outputs
