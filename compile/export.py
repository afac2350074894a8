"""A torch graph to an ONNX model that TPU-MLIR's front end reads."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import onnx
import torch

from compile.graphs.named import name_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from compile.graphs.model import Rwkv7

INLINE_BYTES = 256 << 20
"""Parameters that take more than this together are written beside the ONNX file, as external data.

A protobuf message cannot exceed 2 GiB, and long before that a graph with its weights inside is in memory several times
over while it is written.
"""

_LARGE_BYTES = 1 << 20  # of a parameter that is written there; smaller ones stay inside
_FLOAT_BYTES = 4
_ALIGNMENT = 64

OPSET = 17  # the newest that the front end's onnx 1.14 reads and that has LayerNormalization


def export(graph: Rwkv7, path: Path, *, inline_bytes: int = INLINE_BYTES, large_bytes: int = _LARGE_BYTES) -> list[str]:
    """Write *graph* as ONNX: inputs ``token`` int32 ``[1, T]`` and the states; outputs ``logits`` and the next states.

    State inputs are named ``blocks.0.att.shift``, ``blocks.0.att.state``, ``blocks.0.ffn.shift``, …; the outputs have
    the same names with ``.next`` behind, in the same order. A part of a model
    (:mod:`compile.graphs.block`) has others.

    Args:
        graph: it is not to be used after this.
        path: where to; external data lie beside it, in :func:`external_data` of the path.
        inline_bytes: see :data:`INLINE_BYTES`.
        large_bytes: the smallest parameter that is written as external data, where any is.

    Returns:
        The operations to be computed in float32 in every quantisation, by the compiler's names for them.
    """
    graph = graph.float().eval()
    large: dict[str, Tensor] = {}
    if sum(_FLOAT_BYTES * one.numel() for one in graph.parameters()) > inline_bytes:
        large = _as_inputs(graph, large_bytes)
    inputs, outputs = graph.example_inputs() | large, graph.output_names()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The tracing exporter is deprecated in torch, but it alone keeps module paths, and needs no further packages.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            tuple(inputs.values()),
            buffer,  # type: ignore[arg-type]  # the tracing exporter takes a file object
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=outputs,
            custom_opsets={"naming": 1},
        )
    model = onnx.load_from_string(buffer.getvalue())
    f32 = set(name_tensors(model.graph))
    _share_constants(model.graph)
    _drop_identities(model.graph)
    del model.opset_import[1:]  # the domain of the marks, which are gone
    onnx.checker.check_model(model)
    if large:
        _write_weights(model.graph, large, external_data(path))
    onnx.save(model, str(path))
    # TPU-MLIR names an operation of a single output after that output and the ONNX operator.
    return [f"{node.output[0]}_{node.op_type}" for node in model.graph.node if f32 & set(node.output)]


def external_data(path: Path) -> Path:
    """The file of the weights beside an ONNX file that is too large to hold them."""
    return path.with_name(f"{path.name}.data")


def _as_inputs(graph: Rwkv7, large_bytes: int) -> dict[str, Tensor]:
    """Have *graph* take its large parameters as further inputs of a call, in the order of the result, by their names.

    What is an input is not written into the exported graph, and the tracing exporter names operations as before.
    """
    large = {name: one.data for name, one in graph.named_parameters() if _FLOAT_BYTES * one.numel() >= large_bytes}
    places = []
    for name in large:
        module, _, leaf = name.rpartition(".")
        places.append((graph.get_submodule(module), leaf))
        delattr(*places[-1])
    forward = graph.forward

    def with_weights(*given: Tensor) -> tuple[Tensor, ...]:
        split = len(given) - len(places)
        for (module, leaf), weight in zip(places, given[split:], strict=True):
            setattr(module, leaf, weight)
        return forward(*given[:split])

    graph.forward = with_weights  # type: ignore[assignment, method-assign]
    return large


def _write_weights(graph: onnx.GraphProto, weights: dict[str, Tensor], path: Path) -> None:
    """Turn inputs of these names into initializers, whose values are in the file *path*, one after the other."""
    kept = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)
    with path.open("wb") as file:
        for name, tensor in weights.items():
            file.write(bytes(-file.tell() % _ALIGNMENT))
            initializer = graph.initializer.add(name=name, dims=tensor.shape, data_type=onnx.TensorProto.FLOAT)
            initializer.data_location = onnx.TensorProto.EXTERNAL
            about = {"location": path.name, "offset": file.tell(), "length": _FLOAT_BYTES * tensor.numel()}
            for key, value in about.items():
                initializer.external_data.add(key=key, value=str(value))
            file.write(tensor.contiguous().numpy().data)


def _share_constants(graph: onnx.GraphProto) -> None:
    """Make every constant an initializer, equal ones the same.

    The tracing exporter writes a node for each bound of each slice. The compiler's front end would make initializers of
    them one by one, and look through the whole graph for each: prefill of 256 tokens at 0.1B has 4,733 of 11,850 nodes,
    which alone takes longer than the rest of a compile.
    """
    shared: dict[bytes, str] = {}
    names: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = ""
            contents = tensor.SerializeToString(deterministic=True)
            if contents not in shared:
                shared[contents] = tensor.name = node.output[0]
                graph.initializer.append(tensor)
            names[node.output[0]] = shared[contents]
        else:
            kept.append(node)
    _keep(graph, kept, names)


def _drop_identities(graph: onnx.GraphProto) -> None:
    """Read constants where they are: the tracing exporter gives the second of two equal ones an Identity of the first.

    With them gone there is nothing left that the compiler's front end would simplify, so that it need not try, which
    takes it ten times the weights' memory (:func:`compile.flags.transform_flags`).
    """
    constants = {initializer.name for initializer in graph.initializer}
    outputs = {value.name for value in graph.output}
    names: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in outputs:
            names[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    _keep(graph, kept, names)


def _keep(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], names: dict[str, str]) -> None:
    """Leave these nodes alone in *graph*; what others made they take by another of *names*."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(nodes)


def is_folded(path: Path) -> bool:
    """Whether no operation of an ONNX file can be computed beforehand, having constants alone as inputs."""
    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {initializer.name for initializer in graph.initializer}
    return not any(constants.issuperset(node.input) for node in graph.node)
