"""The parts of a model that are compiled one by one: the graph of each, its tensors, its net's name, its flags.

The names are those by which the runtime puts the nets together again (:mod:`runtime.nets`): ``embed_T``, ``block_0_T``,
``block_1_T``, …, ``head_T``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compile.flags import grouping_flags
from compile.graphs.block import Rwkv7Block, Rwkv7Embedding, Rwkv7Head, Rwkv7LastHead
from compile.spec import GraphKind, GraphSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compile.graphs.model import Rwkv7


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSpec(GraphSpec):
    """A part of a graph; *part* is ``embed``, ``head`` or ``block_`` and the number of a layer."""

    part: str

    @property
    def name(self) -> str:
        """The net's name inside the bmodel."""
        return f"{self.part}_{self.T}"

    @property
    def block(self) -> int | None:
        """The number of the layer; None of the embedding and the head."""
        return int(self.part.removeprefix("block_")) if self.part.startswith("block_") else None

    @property
    def graph(self) -> type[Rwkv7]:
        """What computes it. Only the head depends on which positions' logits the whole graph gives."""
        if self.part == "embed":
            return Rwkv7Embedding
        if self.part == "head":
            return Rwkv7LastHead if self.kind is GraphKind.PREFILL else Rwkv7Head
        return Rwkv7Block

    def tensors(self, names: Iterable[str]) -> list[str]:
        """Those of a model's tensors that the part takes."""
        if self.part == "embed":
            return [name for name in names if name == "emb.weight" or name.startswith("blocks.0.ln0.")]
        if self.part == "head":
            return [name for name in names if name.startswith(("ln_out.", "head."))]
        layer = f"blocks.{self.block}."
        return [name for name in names if name.startswith(layer) and ".ln0." not in name]

    def flags(self, heads: int) -> tuple[str, ...]:
        """Flags of ``model_deploy`` for the part of a model with so many heads a layer.

        Between the parts the residual stream and the first layer's values are float32, which costs 190 cycles a layer
        in a decode step, and is exact: what the nets compute in float16 passes unchanged. (With ``--quant_output`` it
        would come out in float16, but still go in in float32, because layer norms read it so.)

        The head keeps the graph's order of operations: only then does a head for one token have its weights in the same
        order as one for many, which is what lets both share them.
        """
        if self.part == "embed":
            return ()
        if self.part == "head":
            return ("--disable_topo_sort", "--quant_output")
        return grouping_flags(heads, self)


def parts_of(graph: GraphSpec, n_layer: int) -> list[PartSpec]:
    """The parts of a graph, in the order in which they are run."""
    names = ["embed", *(f"block_{i}" for i in range(n_layer)), "head"]
    return [PartSpec(kind=graph.kind, T=graph.T, part=name) for name in names]
