"""What stands in for ``sophon.sail`` on a machine without a board: it records every call, and computes.

Signatures as in sophon-sail 3.10. A "bmodel" here is an ONNX file named after its graph, computed by ONNX Runtime on
what lies in the tensors' device memory. What the real one does not promise fails here: an array of another dtype, a
tensor without the memory that is asked for, and, beyond addr_mode 0, one tensor as input and output.
"""
# ruff: noqa: A002, ARG002, FBT002 - the names and arguments are theirs, and explained in their manual

from enum import Enum
from pathlib import Path

import numpy as np
import onnxruntime


class Dtype(Enum):
    """Sail's names of number formats."""

    BM_FLOAT32 = "float32"
    BM_INT32 = "int32"


class IOMode(Enum):
    """Where an Engine's tensors are."""

    SYSIO = 2
    DEVIO = 3


class FakeSail:
    """The module: its classes share one list of calls.

    Attributes:
        calls: name of the call and the tensor or graph that it was made on.
        addr_mode: that of every graph.
        status: what EngineLLM.process returns.
    """

    __version__ = "3.10.7"
    Dtype = Dtype
    IOMode = IOMode

    def __init__(self, *, has_llm=True, addr_mode=0, status=None):
        self.calls = []
        self.addr_mode = addr_mode
        self.status = status
        fake = self

        class Tensor(_Tensor):
            record = staticmethod(lambda *call: fake.calls.append(call))

        class Engine(_Engine):
            sail = fake

        class EngineLLM(_EngineLLM):
            sail = fake

        self.Handle, self.Tensor, self.Engine = _Handle, Tensor, Engine
        if has_llm:
            self.EngineLLM = EngineLLM


class _Handle:
    def __init__(self, tpu_id):
        assert isinstance(tpu_id, int)


class _Tensor:
    def __init__(self, handle, shape, dtype, own_sys_data=False, own_dev_data=False):
        assert isinstance(handle, _Handle)
        self.system = np.full(shape, np.iinfo(np.int32).min, dtype.value) if own_sys_data else None
        self.device = np.full(shape, np.iinfo(np.int32).min, dtype.value) if own_dev_data else None
        self._shape, self._dtype = list(shape), dtype

    def shape(self):
        return self._shape

    def update_data(self, data):
        self.record("update_data", self)
        assert data.dtype == self._dtype.value
        target = self.device if self.system is None else self.system
        target.reshape(-1)[: data.size] = data.reshape(-1)

    def sync_s2d(self, src=None, offset_src=0, offset_dst=0, length=None):
        self.record("sync_s2d", self)
        _copy(self.system if src is None else src.system, self.device, offset_src, offset_dst, length)

    def sync_d2s(self, src=None, offset_src=0, offset_dst=0, length=None):
        self.record("sync_d2s", self)
        _copy(self.device if src is None else src.device, self.system, offset_src, offset_dst, length)

    def asnumpy(self):
        self.record("asnumpy", self)
        return self.system  # a view, as the next synchronisation shows


def _copy(source, goal, offset_source, offset_goal, length):
    assert source is not None, "no such memory"
    assert goal is not None, "no such memory"
    length = goal.size if length is None else length
    goal.reshape(-1)[offset_goal : offset_goal + length] = source.reshape(-1)[offset_source : offset_source + length]


class _Graph:
    """One ONNX file."""

    def __init__(self, bmodel):
        self._session = onnxruntime.InferenceSession(bmodel, providers=["CPUExecutionProvider"])
        self._graph = Path(bmodel).stem
        self._inputs, self._outputs = self._session.get_inputs(), self._session.get_outputs()

    def get_graph_names(self):
        return [self._graph]

    def _compute(self, graph_name, inputs, outputs, addr_mode):
        """Tensors in the graph's order."""
        assert graph_name == self._graph
        self.sail.calls.append(("process", graph_name))
        aliases = [tensor for tensor in outputs if any(tensor is other for other in inputs)]
        if addr_mode != 0:
            for tensor in aliases:
                tensor.device[...] = np.nan  # written before it is read
        names = [node.name for node in self._inputs]
        computed = self._session.run(None, dict(zip(names, [tensor.device.copy() for tensor in inputs], strict=True)))
        for tensor, array in zip(outputs, computed, strict=True):
            assert tensor.device.shape == array.shape
            tensor.device[...] = array


class _EngineLLM(_Graph):
    def __init__(self, bmodel_path, tpu_ids):
        assert isinstance(tpu_ids, list)
        super().__init__(bmodel_path)

    def get_addr_mode(self, graph_name):
        return self.sail.addr_mode

    def get_input_num(self, graph_name):
        return len(self._inputs)

    def get_output_num(self, graph_name):
        return len(self._outputs)

    def get_input_shape(self, graph_name, index, stage=0):
        return self._inputs[index].shape

    def get_output_shape(self, graph_name, index, stage=0):
        return self._outputs[index].shape

    def get_input_dtype(self, graph_name, index):
        return _dtype(self._inputs[index])

    def get_output_dtype(self, graph_name, index):
        return _dtype(self._outputs[index])

    def process(self, graph_name, input, output, core_list=(0,)):
        in_order, out_order = ([tensors[i] for i in range(len(tensors))] for tensors in (input, output))
        self._compute(graph_name, in_order, out_order, self.sail.addr_mode)
        return self.sail.status


class _Engine(_Graph):
    def __init__(self, bmodel_path, tpu_id, mode):
        assert isinstance(tpu_id, int)
        assert mode is IOMode.DEVIO
        super().__init__(bmodel_path)

    def get_input_names(self, graph_name):
        return [node.name for node in self._inputs]

    def get_output_names(self, graph_name):
        return [node.name for node in self._outputs]

    def get_input_shape(self, graph_name, tensor_name):
        return next(node for node in self._inputs if node.name == tensor_name).shape

    def get_output_shape(self, graph_name, tensor_name):
        return next(node for node in self._outputs if node.name == tensor_name).shape

    def get_input_dtype(self, graph_name, tensor_name):
        return _dtype(next(node for node in self._inputs if node.name == tensor_name))

    def get_output_dtype(self, graph_name, tensor_name):
        return _dtype(next(node for node in self._outputs if node.name == tensor_name))

    def process(self, graph_name, input, output, core_list=()):
        in_order = [input[name] for name in self.get_input_names(graph_name)]
        out_order = [output[name] for name in self.get_output_names(graph_name)]
        self._compute(graph_name, in_order, out_order, self.sail.addr_mode)


def _dtype(node):
    return {"tensor(float)": Dtype.BM_FLOAT32, "tensor(int32)": Dtype.BM_INT32}[node.type]
