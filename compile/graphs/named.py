"""Names, and full precision, that survive the way from torch to the compiled model.

A quantity passes through a :class:`Named` module whose path is the name: what ``blocks.3.att.wkv`` sees is the tensor
``blocks.3.att.wkv`` in ONNX, and, since TPU-MLIR keeps ONNX names as locations, in TOP, TPU and the profile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx

_DOMAIN = "naming"
_PLAIN, _F32 = f"{_DOMAIN}::Plain", f"{_DOMAIN}::F32"


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mark: str) -> Tensor:  # noqa: ARG004 - torch's signature
        return x.view_as(x)

    @staticmethod
    def symbolic(g: Any, x: Any, mark: str) -> Any:
        return g.op(mark, x).setType(x.type())


class Named(nn.Module):
    """The identity; its path in the module tree names what passes through."""

    def __init__(self, *, f32: bool = False) -> None:
        """With *f32*, the operation that makes the quantity is computed in float32 whatever the quantisation."""
        super().__init__()
        self.mark = _F32 if f32 else _PLAIN

    def forward(self, x: Tensor) -> Tensor:
        """X, unchanged."""
        if not torch.onnx.is_in_onnx_export():
            return x
        return _Mark.apply(x, self.mark)  # type: ignore[no-untyped-call, no-any-return]


def name_tensors(graph: onnx.GraphProto) -> list[str]:
    """Turn every mark left by :class:`Named` into the name of the tensor that it marks; edits *graph* in place.

    A graph input or output keeps its name, and a tensor marked twice its first one; a module called several times
    names what comes later ``name_1``, ``name_2``, … (torch's doing).

    Returns:
        The names of the tensors marked ``f32``.
    """
    fixed = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    names: dict[str, str] = {}
    f32 = []
    for mark in [node for node in graph.node if node.domain == _DOMAIN]:
        source, target = mark.input[0], mark.output[0]
        if target in fixed:
            names[source] = target  # the mark's producer takes over the name of the graph's output
        elif source not in fixed and source not in names:
            names[source] = mark.name.strip("/").rpartition("/")[0].replace("/", ".")
        name = names[target] = names.get(source, source)
        if f"{_DOMAIN}::{mark.op_type}" == _F32:
            f32.append(name)
        graph.node.remove(mark)
    for node in graph.node:
        for ends in (node.input, node.output):
            for i, end in enumerate(ends):
                ends[i] = names.get(end, end)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
    return f32
