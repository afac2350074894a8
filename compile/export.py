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

    from compile.graphs.model import Rwkv7

OPSET = 17  # the newest that the front end's onnx 1.14 reads and that has LayerNormalization


def export(graph: Rwkv7, path: Path) -> list[str]:
    """Write *graph* as ONNX: inputs ``token`` int32 ``[1, T]`` and the states; outputs ``logits`` and the next states.

    State inputs are named ``blocks.0.att.shift``, ``blocks.0.att.state``, ``blocks.0.ffn.shift``, …; the outputs have
    the same names with ``.next`` behind, in the same order. A part of a model
    (:mod:`compile.graphs.block`) has others.

    Returns:
        The operations to be computed in float32 in every quantisation, by the compiler's names for them.
    """
    inputs, outputs = graph.example_inputs(), graph.output_names()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The tracing exporter is deprecated in torch, but it alone keeps module paths, and needs no further packages.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.float().eval(),
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
    del model.opset_import[1:]  # the domain of the marks, which are gone
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    # TPU-MLIR names an operation of a single output after that output and the ONNX operator.
    return [f"{node.output[0]}_{node.op_type}" for node in model.graph.node if f32 & set(node.output)]


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
    for node in kept:
        node.input[:] = [names.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)
