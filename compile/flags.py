"""Flags of the compiler's tools that a graph gets: those it needs to compile at all, and those it is fastest with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compile.dims import Dims
from compile.releases import in_order
from compile.spec import GraphKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compile.dims import Arrays
    from compile.spec import GraphSpec

_UNSIMPLIFIED = ("--do_onnx_sim", "")  # an empty text, because the tool takes any other for yes
_UNSIMPLIFIED_SINCE = "1.24"

_SINCE = {"--disable_topo_sort": "1.28.1"}
"""Flags without a value, by the oldest release that is known to have them; TPU-MLIR 1.24 has not."""


def transform_flags(version: str) -> tuple[str, ...]:
    """The flags of ``model_transform`` for a graph of ours without anything to compute beforehand.

    It is not to simplify the ONNX, where a release lets one say so: there is nothing to simplify, and the TOP
    dialect is the same to the letter. Of decode at 0.1B in F16, 60 s and 7.9 GB of memory became 13 s and 3.4 GB.
    Somebody else's ONNX is simplified.
    """
    return _UNSIMPLIFIED if in_order(version) >= in_order(_UNSIMPLIFIED_SINCE) else ()


def needed_flags(arrays: Arrays, spec: GraphSpec) -> tuple[str, ...]:
    """The flags for a graph of a model of these arrays.

    ``--quant_output``: logits come out in the precision in which they were computed; the cast to float32 took 8 us of a
    step at a vocabulary of 65,536. States are float32 by themselves and stay so.

    ``--disable_topo_sort``, for one token: operations keep the order in which the graph names them. Sorted depth first,
    what the recurrence makes of a value comes before the LoRA pairs, and its columns cross between layer groups, 15 us
    each: 334 us instead of 255 for two layers at 0.1B in W4F16. For T tokens the sorted order is 2 % faster.

    ``--opt 1``, for T tokens: as many operations in a layer group as fit, in place of the compiler's search for the
    cheapest groups. Each layer's recurrence is one group anyway, so that the search saves 48 cycles (F16, two layers at
    0.1B, 32, 64 and 128 tokens alike), and takes a time that grows with the cube of what is grouped: of two layers and
    512 tokens it had not ended after a quarter of an hour, and without it they compile in a minute. For one token the
    search is 6 % faster.

    ``--disable_layer_group``, for a single head: no product of the recurrence is batched then, so nothing breaks the
    layers apart, and the compiler searches layer groups over the whole model: TPU-MLIR 1.30.2 took 33 s for a decode
    graph of 4 layers of width 64, and for 12 layers had not ended after 25 minutes, when it had filled 22 GB of memory.
    Without layer groups the same graph compiles in 4 s. (12 layers of width 128, with two heads, take 9 s with them.)
    """
    return (*grouping_flags(Dims.of(arrays).H, spec), "--quant_output")


def grouping_flags(heads: int, spec: GraphSpec) -> tuple[str, ...]:
    """Those of them that say how layers of so many heads are grouped."""
    if heads == 1:
        return ("--disable_layer_group",)
    return ("--disable_topo_sort",) if spec.kind is GraphKind.DECODE else ("--opt", "1")


def known_flags(flags: Sequence[str], version: str) -> tuple[str, ...]:
    """*flags* without those that a release is too old for: a graph is slower without them, but compiles."""
    return tuple(flag for flag in flags if flag not in _SINCE or in_order(version) >= in_order(_SINCE[flag]))
