"""An ONNX graph, written down operation by operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compile.export import OPSET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_IR_VERSION = 8  # the newest that the front end's onnx 1.14 reads


class Graph:
    """A graph under construction; tensors are names. Calling it adds an operation and gives its output."""

    def __init__(self, inputs: Mapping[str, np.ndarray], opset: int = OPSET) -> None:
        """Begin with *inputs*, of which shapes and types matter: float32 or int32."""
        self._inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ]
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operation of one output."""
        (output,) = self.several(operator, 1, *inputs, **attributes)
        return output

    def several(self, operator: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add an operation of *count* outputs."""
        number = len(self._nodes)
        outputs = [f"{operator.lower()}_{number}" + (f"_{i}" if count > 1 else "") for i in range(count)]
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, name=f"node_{number}", **attributes))
        return outputs

    def const(self, value: np.ndarray | Sequence[float] | float) -> str:
        """Add a constant: floats become float32, everything else stays as it is."""
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def ints(self, *values: int) -> str:
        """Add a constant of whole numbers, int64 as ONNX wants shapes, axes and bounds."""
        return self.const(np.array(values, np.int64))

    def reshape(self, x: str, *shape: int) -> str:
        """Add a Reshape."""
        return self("Reshape", x, self.ints(*shape))

    def slice(self, x: str, start: int, stop: int, axis: int) -> str:
        """Add a Slice of one axis."""
        return self("Slice", x, self.ints(start), self.ints(stop), self.ints(axis))

    def sum(self, x: str, axis: int, *, keep: bool = True) -> str:
        """Add a ReduceSum over one axis."""
        return self("ReduceSum", x, self.ints(axis), keepdims=int(keep))

    def model(self, outputs: Mapping[str, Sequence[int]], name: str) -> onnx.ModelProto:
        """Finish: *outputs* maps tensors to their shapes, all float32."""
        graph = helper.make_graph(
            self._nodes,
            name,
            self._inputs,
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape) for output, shape in outputs.items()],
            self._constants,
        )
        model = helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", self.opset)])
        if self.opset == OPSET:  # of later ones, our onnx refuses what the front end's takes
            onnx.checker.check_model(model)
        return model
