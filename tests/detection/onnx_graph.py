"""An exported graph on ONNX Runtime, as one of the nets of :class:`tests.detection.engine.TorchEngine`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import torch

from compile.export import export
from harness.targets.graphs import state_outputs
from reference.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ModelProto
    from torch import Tensor

    from compile.graphs.model import Rwkv7


def exported(graph: Rwkv7) -> tuple[ModelProto, list[str]]:
    """The graph as the compiler gets it, and the operations that stay in float32."""
    with tempfile.TemporaryDirectory(prefix="rwkv-tpu-") as folder:
        path = Path(folder) / "model.onnx"
        f32 = export(graph, path)
        return onnx.load(path), f32


class OnnxGraph:
    """One graph, as it stands: without optimisations, which could make two graphs one."""

    def __init__(self, model: ModelProto) -> None:
        """Load it.

        Raises:
            Exception: of ONNX Runtime: it is no graph that runs.
        """
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # of a mutant, complaints are expected
        data = model.SerializeToString()
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._inputs = {given.name: tuple(given.shape) for given in self._session.get_inputs()}
        graph = model.graph
        self._outputs = [tuple(dim.dim_value for dim in out.type.tensor_type.shape.dim) for out in graph.output]

    def call(self, tokens: Sequence[int], states: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Logits and next states, as the graph gives them."""
        shaped = zip(states, list(self._inputs.items())[1:], strict=True)
        feeds = {"token": np.asarray([tokens], np.int32), **{name: a.reshape(shape) for a, (name, shape) in shaped}}
        outputs: list[np.ndarray] = self._session.run(None, feeds)
        return outputs

    def keeps_shapes(self) -> bool:
        """Whether outputs have the shapes that the graph declares."""
        zeros = [np.zeros(shape, np.float32) for shape in list(self._inputs.values())[1:]]
        return [out.shape for out in self.call([0] * next(iter(self._inputs.values()))[1], zeros)] == self._outputs

    def forward(self, tokens: Sequence[int], state: State) -> tuple[Tensor, State]:
        """Logits ``[T or 1, V]`` and the state after the last token; see :class:`tests.detection.engine.Computes`."""
        logits, *after = self.call(tokens, state.arrays())
        return torch.from_numpy(logits[0]), State.from_arrays(state_outputs(after), torch.float32)
