"""Bmodels on a board through sophon-sail, Sophgo's own Python interface: a second way to the same chip.

``sail.EngineLLM`` where this build of sail has it, otherwise ``sail.Engine``. The state stays in device memory.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from harness.targets.base import Output, StateArrays
from harness.targets.graphs import check_tokens, chunks, state_inputs, state_outputs
from runtime.faults import BadBmodel, DeviceError, LibraryMissing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from compile.dims import Dims

_BASIC = 0  # the addr_mode in which the runtime itself copies inputs in and outputs out


def import_sail() -> Any:
    """The module ``sophon.sail``.

    Raises:
        LibraryMissing: it cannot be imported; says how to get it.
    """
    try:
        return importlib.import_module("sophon.sail")
    except ImportError as error:
        raise LibraryMissing(
            f"sophon-sail cannot be imported: {error}\n"
            "It is Sophgo's Python interface to a board, and drives boards alone, no simulator. Build it from its "
            "sources, github.com/sophgo/sophon-sail, beside the board's libsophon, with -DONLY_RUNTIME=ON (and "
            "-DBUILD_TYPE=soc on the board itself), or take a wheel for this Python from Sophgo's downloads; then "
            "install it into this environment. The package index has none: what is called sophon there, of 3.6 kB, "
            "is something else.\n"
            "Without it, a board's number as target drives the board through libsophon."
        ) from error


class SailTarget:
    """A decode graph and graphs that give every position, on one board."""

    def __init__(self, bmodels: Sequence[Path], dims: Dims, device: int = 0) -> None:
        """Load *bmodels*, one graph each.

        Raises:
            LibraryMissing: sail cannot be imported.
            BadBmodel: a graph is not of this model, or its tensors are not those of :func:`compile.export.export`.
        """
        sail = import_sail()
        self._dims = dims
        open_graph = _LlmGraph if hasattr(sail, "EngineLLM") else _EngineGraph
        self.version = f"{sail.__version__} {'EngineLLM' if open_graph is _LlmGraph else 'Engine'}"
        self._graphs: dict[int, _Graph] = {}
        f32, i32 = sail.Dtype.BM_FLOAT32, sail.Dtype.BM_INT32
        states = [list(shape) for _, shape in dims.state_shapes()]
        for bmodel in bmodels:
            graph = open_graph(sail, str(bmodel), device)
            T = graph.inputs[0][0][-1]
            wanted = [([1, T], i32), *((shape, f32) for shape in states)]
            if graph.inputs != wanted or [given for given in graph.outputs[1:] if given[1] != f32]:
                raise BadBmodel(
                    f"{bmodel}: expected inputs {wanted} and outputs of float32, found {graph.inputs}, {graph.outputs}"
                )
            self._graphs[T] = graph
        handle = sail.Handle(device)

        def tensor(shape: Sequence[int], dtype: Any, *, host: bool, device: bool) -> Any:
            return sail.Tensor(handle, shape=list(shape), dtype=dtype, own_sys_data=host, own_dev_data=device)

        # A state has no memory of its own on the host: it comes and goes through the tensors of _host alone.
        self._current = [tensor(shape, f32, host=False, device=True) for shape in states]
        self._spare = [tensor(shape, f32, host=False, device=True) for shape in states]
        self._host = [tensor(shape, f32, host=True, device=False) for shape in states]
        self._tokens = {T: tensor([1, T], i32, host=True, device=True) for T in self._graphs}
        self._logits = {T: tensor([1, T, dims.V], f32, host=True, device=True) for T in self._graphs}

    def close(self) -> None:
        """Let go of everything; sail gives device memory and board back when nobody refers to them."""
        self._graphs.clear()
        self._tokens.clear()
        self._logits.clear()
        self._current, self._spare, self._host = [], [], []

    def run(self, tokens: Sequence[int], state: StateArrays | None = None) -> Output:
        """Logits of every position, whole chunks first, the tail token by token; nothing is ever padded.

        Raises:
            ValueError: no tokens, or one outside the vocabulary.
            DeviceError: the board did not compute them.
        """
        check_tokens(tokens, self._dims.V)
        arrays = state_inputs(state, self._dims)
        for device, host, array in zip(self._current, self._host, arrays, strict=True):
            host.update_data(array)
            device.sync_s2d(host, 0, 0, array.size)
        rows = [self._call(T, chunk) for T, chunk in chunks(tokens, self._graphs)]
        for device, host, array in zip(self._current, self._host, arrays, strict=True):
            host.sync_d2s(device, 0, 0, array.size)
        after = [np.array(host.asnumpy()) for host in self._host]
        return Output(tuple(range(len(tokens))), np.concatenate(rows), state_outputs(after))

    def _call(self, T: int, chunk: Sequence[int]) -> np.ndarray:
        graph, tokens, logits = self._graphs[T], self._tokens[T], self._logits[T]
        tokens.update_data(np.array([chunk], np.int32))
        tokens.sync_s2d()
        # Beyond BASIC a graph may write a state before it has read all of it.
        after = self._current if graph.is_basic else self._spare
        try:
            graph.process([tokens, *self._current], [logits, *after])
        except RuntimeError as error:  # what its C++ exceptions become
            raise DeviceError(f"sophon-sail failed on {T} tokens: {error}", call="process") from error
        if after is self._spare:
            self._current, self._spare = self._spare, self._current
        logits.sync_d2s()
        return np.array(logits.asnumpy()).reshape(T, -1)


_Tensors = list[tuple[list[int], Any]]
"""Shape and sail's dtype of each."""


class _Graph(Protocol):
    """What the two interfaces have in common."""

    inputs: _Tensors
    outputs: _Tensors
    is_basic: bool

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Compute, and wait until it is done."""
        ...


class _LlmGraph:
    """Tensors by number."""

    def __init__(self, sail: Any, bmodel: str, device: int) -> None:
        self._engine = engine = sail.EngineLLM(bmodel, [device])
        self._name = name = _only(engine.get_graph_names(), bmodel)
        self.is_basic = engine.get_addr_mode(name) == _BASIC
        ins, outs = range(engine.get_input_num(name)), range(engine.get_output_num(name))
        self.inputs = [(list(engine.get_input_shape(name, i)), engine.get_input_dtype(name, i)) for i in ins]
        self.outputs = [(list(engine.get_output_shape(name, i)), engine.get_output_dtype(name, i)) for i in outs]

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        # Its manual says that it returns a status, its source that it returns nothing and raises.
        if status := self._engine.process(self._name, dict(enumerate(inputs)), dict(enumerate(outputs))):
            raise DeviceError(f"sail.EngineLLM.process({self._name}) returned {status}", call="process", status=status)


class _EngineGraph:
    """Tensors by name; which addr_mode a graph has cannot be asked."""

    is_basic = False

    def __init__(self, sail: Any, bmodel: str, device: int) -> None:
        self._engine = engine = sail.Engine(bmodel, device, sail.IOMode.DEVIO)
        self._name = name = _only(engine.get_graph_names(), bmodel)
        self._input_names, self._output_names = engine.get_input_names(name), engine.get_output_names(name)
        self.inputs = [
            (list(engine.get_input_shape(name, tensor)), engine.get_input_dtype(name, tensor))
            for tensor in self._input_names
        ]
        self.outputs = [
            (list(engine.get_output_shape(name, tensor)), engine.get_output_dtype(name, tensor))
            for tensor in self._output_names
        ]

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        by_name: list[Mapping[str, Any]] = [
            dict(zip(self._input_names, inputs, strict=True)),
            dict(zip(self._output_names, outputs, strict=True)),
        ]
        self._engine.process(self._name, *by_name)


def _only(names: Sequence[str], bmodel: str) -> str:
    if len(names) != 1:
        raise BadBmodel(f"{bmodel}: expected one graph, found {', '.join(names) or 'none'}")
    return names[0]
