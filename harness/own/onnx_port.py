"""Somebody else's ONNX files: compiled like our graphs, and run in ONNX Runtime, which tells whose fault a fault is."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime

from compile.compiler import Job
from compile.graphs.model import Rwkv7
from compile.ready import ReadyOnnx
from compile.stages import hash_file
from harness.checkpoints import open_model
from harness.own.io_map import load_map
from harness.own.match import matched
from harness.own.port import Port, reference_of
from harness.targets.base import Output
from runtime.binding import Dtype
from runtime.nets import check_agreement
from runtime.piece import put_together, take_apart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from compile.spec import GraphKind
    from compile.toolchain import Toolchain
    from harness.cases import Case
    from harness.own.io_map import IoMap
    from harness.targets.base import StateArrays
    from runtime.nets import Net
    from tokenizer.codec import Codec

_TYPES = {
    onnx.TensorProto.FLOAT: (Dtype.F32, 4),
    onnx.TensorProto.FLOAT16: (Dtype.F16, 2),
    onnx.TensorProto.INT32: (Dtype.I32, 4),
    onnx.TensorProto.INT64: (Dtype.I32, 4),  # what the compiler makes of it
}


@dataclass(frozen=True, slots=True)
class PortSpec:
    """What a net is compiled as: one of our kinds of graph, under the port's own name."""

    name: str
    kind: GraphKind
    T: int


@dataclass(frozen=True, slots=True)
class OnnxPort(Port):
    """A port of which there is no bmodel yet.

    Attributes:
        by_net: the ONNX file of each net, by the port's own name.
        operations: of the file of each net, by the compiler's names.
        judged: what ONNX Runtime's numbers were found to be, by case: empty where they are right.
    """

    by_net: Mapping[str, Path] = field(default_factory=dict)
    operations: Mapping[str, frozenset[str]] = field(default_factory=dict)
    judged: dict[str, str] = field(default_factory=dict)

    def sha256_of(self, case: Case) -> str:
        """Of the ONNX file that has the case's net."""
        return self.files[self.by_net[self.net_of(case)]]

    def job(self, case: Case, toolchain: Toolchain) -> Job:
        """What to compile for a case."""
        name = self.net_of(case)
        table = self._table(name)
        identity = repr((self.sha256_of(case), name, table))
        return Job(
            arrays={},
            arrays_sha256=hashlib.sha256(identity.encode()).hexdigest(),
            variant=Rwkv7,
            spec=PortSpec(name, case.graph.kind, case.graph.T),  # type: ignore[arg-type]
            quantization=case.quantization,
            onnx=ReadyOnnx(self.by_net[name], table),
            toolchain=toolchain,
        )

    def _table(self, net: str) -> tuple[str, ...]:
        """The operations of a net that stay in float32, of a table for all nets.

        A name that no file has is left in: the compiler may know it, and where it does not, that is told.
        """
        others = frozenset().union(*self.operations.values()) - self.operations[net]
        return tuple(name for name in self.io.f32_operations if name not in others)

    def target(self, case: Case) -> OnnxTarget:
        """The case's net in ONNX Runtime."""
        name = self.net_of(case)
        described = [(describe_onnx(self.io, self.by_net[name]), str(self.by_net[name]))]
        nets = matched(self.io, described, self.model.checkpoint.shape, only=[name])
        return OnnxTarget(next(net for net in nets if net.name == case.graph.name), self.by_net[name], self.embedding)


class OnnxTarget:
    """One net, called again and again; the state goes out and in."""

    def __init__(self, net: Net, path: Path, embedding: np.ndarray | None) -> None:
        """Load the file *path*, which *net* was read from; *embedding* has the rows that it takes, if it does."""
        self._net = net
        self._embedding = embedding
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(self, tokens: Sequence[int], state: StateArrays | None = None) -> Output:
        """Logits of the positions that the net gives.

        Raises:
            ValueError: the number of tokens is not a multiple of the net's.
        """
        net, T = self._net, self._net.tokens
        if not tokens or len(tokens) % T:
            raise ValueError(f"{len(tokens)} tokens, but net {net.name} takes a multiple of {T}")
        shapes = [one.shape for one in net.states]
        tensors = [np.zeros(shape, np.float32) for shape in shapes]
        if state is not None:
            tensors = put_together(state, net.pieces, shapes)
        rows: list[np.ndarray] = []
        positions: list[int] = []
        for start in range(0, len(tokens), T):
            logits, tensors = self._call(tokens[start : start + T], tensors)
            rows.append(logits)
            positions += range(start if net.every_position else start + T - 1, start + T)
        return Output(tuple(positions), np.concatenate(rows), take_apart(tensors, net.pieces))

    def _fed(self, tokens: Sequence[int]) -> np.ndarray:
        ids = np.asarray(tokens)
        return ids if self._embedding is None else self._embedding[ids]

    def _call(self, tokens: Sequence[int], states: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        (part,) = self._net.parts
        given = {}
        for port, role in zip(self._session.get_inputs(), part.inputs, strict=True):
            value = states[role] if isinstance(role, int) else self._fed(tokens)
            dtype = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float16)": np.float16}
            given[port.name] = value.astype(dtype.get(port.type, np.float32)).reshape(port.shape)
        found = dict(zip(part.outputs, self._session.run(None, given), strict=True))
        logits = found["logits"].astype(np.float32).reshape(-1, self._net.vocabulary)
        after = [found[i].astype(np.float32).reshape(state.shape) for i, state in enumerate(self._net.states)]
        return logits, after


def describe_onnx(io: IoMap, path: Path) -> dict[str, Any]:
    """An ONNX file as the worker would describe a net, under the name of the net of the map that it is.

    That is the net that the file is named after, or else the only one that takes as many tokens.

    Raises:
        MapError: shapes are not fixed, or it is no net of the map.
    """
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # noqa: BLE001 - protobuf and onnx raise errors of many kinds
        io.refuse(f"{path} cannot be read as ONNX: {error}")
    weights = {one.name for one in graph.initializer}
    inputs = [_port(io, path, value) for value in graph.input if value.name not in weights]
    described: dict[str, Any] = {"is_dynamic": False, "stages": 1, "addr_mode": 0}
    described |= {"inputs": inputs, "outputs": [_port(io, path, value) for value in graph.output]}
    if path.stem in io.file.nets:
        return {"name": path.stem, **described}
    section, entry = io.fed
    fed = [port for port in inputs if port["name"] == entry.input] or inputs[:1]
    width = fed[0]["shape"][-1] if fed and fed[0]["shape"] and section == "embedding" else 1
    tokens = math.prod(fed[0]["shape"]) // max(width, 1) if fed else 0
    names = [name for name, net in io.file.nets.items() if net.tokens == tokens]
    if len(names) != 1:
        lengths = {name: net.tokens for name, net in io.file.nets.items()}
        io.refuse(
            f"expected one net for the {tokens} tokens of {path}, found {lengths}; or name the file like its net",
            "nets",
        )
    return {"name": names[0], **described}


def operations_of(path: Path) -> frozenset[str]:
    """The names that the compiler gives to an ONNX file's operations: what they give, and what they are."""
    graph = onnx.load(path, load_external_data=False).graph
    return frozenset(f"{output}_{node.op_type}" for node in graph.node for output in node.output)


def _port(io: IoMap, path: Path, value: Any) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or "?") for dim in tensor.shape.dim]
    if not all(isinstance(length, int) for length in shape):
        io.refuse(f"expected fixed shapes in {path}, found {value.name} {shape}: export the port for one chunk length")
    if tensor.elem_type not in _TYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        io.refuse(f"expected F32, F16, I32 or I64 in {path}, found {value.name} {kind}")
    dtype, size = _TYPES[tensor.elem_type]
    return {"name": value.name, "dtype": int(dtype), "shape": shape, "bytes": size * math.prod(shape)}


def open_onnx_port(files: Sequence[Path], io: Path, checkpoint: Path | None, codec: Codec | None) -> OnnxPort:
    """Read the map, the checkpoint and the files' inputs and outputs, and see that they agree.

    Raises:
        MapError, BadBmodel, CheckpointError, CodecError: as :func:`harness.own.port.open_port`.
    """
    read = load_map(io)
    model = open_model(reference_of(read, checkpoint), codec or read.file.codec)
    described = [(describe_onnx(read, path), str(path)) for path in files]
    by_net = {net["name"]: path for (net, _), path in zip(described, files, strict=True)}
    check_agreement(matched(read, described, model.checkpoint.shape))
    operations = {net: operations_of(path) for net, path in by_net.items()}
    return OnnxPort(read, model, {path: hash_file(path) for path in files}, by_net, operations)
