"""One layer as a graph of its own: of a model that is too large for the compiler as a whole, layers still compile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compile.dims import Dims
from compile.graphs.model import Rwkv7

if TYPE_CHECKING:
    from compile.dims import Arrays


class Rwkv7Block(Rwkv7):
    """A layer that is not the first, for T tokens a call: the residual stream in and out, no embedding and no head.

    It is built from the block of :class:`Rwkv7`; a graph of another variant's is a subclass with that variant's
    ``block``. All T rows come out, whatever the kind of graph.
    """

    def __init__(self, arrays: Arrays, *, T: int, every_position: bool = True, weight_group: int = 1) -> None:
        """Build the layer whose tensors *arrays* has, by BlinkDL's names, and no others.

        Raises:
            ValueError: they are not those of one layer, or of the first, which has no value of a layer before it.
        """
        nn.Module.__init__(self)
        found = {name.split(".")[1] if name.startswith("blocks.") else name for name in arrays}
        if len(found) != 1 or not (name := min(found)).isdecimal() or int(name) == 0:
            some = ", ".join(sorted(found)[:5])
            raise ValueError(f"tensors of {some or 'nothing'}, but should be of one layer, and not of layer 0")
        self.dims = Dims.of(arrays)
        self.T = T
        self.every_position = every_position
        self.i = int(name)
        # By its number in the model, so that names in the compiled graph are the model's.
        block = self.block(arrays, self.i, T, weight_group=weight_group)
        self.blocks = nn.ModuleList()
        self.blocks.add_module(name, block)
        self.v_first_shape = block.v_first_shape

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """X ``[1, T, C]``, the layer's 3 states and v_first, in the block's own shape -> x and the 3 next states."""
        (block,) = self.blocks
        x, next_states, _ = block(x, *states)
        return x, *next_states

    def example_inputs(self) -> dict[str, Tensor]:
        """Zeros for ``x``, the states, and ``v_first``; a state has the same place here as its next one has outside."""
        states = self.dims.layer_state_shapes(self.i)
        shapes = [("x", (1, self.T, self.dims.C)), *states, ("v_first", self.v_first_shape)]
        return {name: torch.zeros(shape) for name, shape in shapes}

    def output_names(self) -> list[str]:
        """``x.next`` and the next states."""
        return ["x.next", *(f"{name}.next" for name, _ in self.dims.layer_state_shapes(self.i))]
