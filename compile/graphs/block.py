"""Parts of a model as graphs of their own, for models that are too large for the compiler as a whole.

For T tokens a call: the embedding gives the residual stream, each layer takes it and gives it on, the head makes logits
of it. The first layer gives its values too, which all others take. Together they compute what :class:`Rwkv7` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compile.dims import Dims
from compile.graphs.layers import LayerNorm, Linear
from compile.graphs.model import Rwkv7, embedding

if TYPE_CHECKING:
    from compile.dims import Arrays


class Rwkv7Block(Rwkv7):
    """One layer: the residual stream in and out, no embedding and no head.

    It is built from the block of :class:`Rwkv7`; a graph of another variant's is a subclass with that variant's
    ``block``. All T rows come out, whatever the kind of graph.
    """

    def __init__(self, arrays: Arrays, *, T: int, every_position: bool = True, weight_group: int = 1) -> None:
        """Build the layer whose tensors *arrays* has, by BlinkDL's names, and no others.

        Raises:
            ValueError: they are not those of one layer; the layer norm of the embedding, ``blocks.0.ln0``, is of none.
        """
        nn.Module.__init__(self)
        found = {name.split(".")[1] if name.startswith("blocks.") else name for name in arrays}
        found |= {name for name in arrays if ".ln0." in name}
        if len(found) != 1 or not (name := min(found)).isdecimal():
            some = ", ".join(sorted(found)[:5])
            raise ValueError(f"tensors of {some or 'nothing'}, but should be of one layer")
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
        """X ``[1, T, C]``, the layer's 3 states and v_first, in the block's own shape -> x and the 3 next states.

        The first layer takes no v_first, and gives it after the next states.
        """
        (block,) = self.blocks
        if self.i:
            x, next_states, _ = block(x, *states)
            return x, *next_states
        x, next_states, v_first = block(x, *states, None)
        return x, *next_states, v_first

    def example_inputs(self) -> dict[str, Tensor]:
        """Zeros for ``x``, the states, and ``v_first``; a state has the same place here as its next one has outside."""
        shapes = [("x", (1, self.T, self.dims.C)), *self.dims.layer_state_shapes(self.i)]
        if self.i:
            shapes.append(("v_first", self.v_first_shape))
        return {name: torch.zeros(shape) for name, shape in shapes}

    def output_names(self) -> list[str]:
        """``x.next``, the next states, and ``v_first`` of the first layer."""
        names = ["x.next", *(f"{name}.next" for name, _ in self.dims.layer_state_shapes(self.i))]
        return names if self.i else [*names, "v_first"]


class Rwkv7Embedding(Rwkv7):
    """Token ids to the residual stream."""

    def __init__(self, arrays: Arrays, *, T: int, every_position: bool = True, weight_group: int = 1) -> None:
        """Takes ``emb.weight`` and ``blocks.0.ln0``; *every_position* and *weight_group* mean nothing here."""
        del every_position, weight_group
        nn.Module.__init__(self)
        self.T = T
        self.emb = embedding(arrays, torch.float32)

    def forward(self, token: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        """Token ids ``[1, T]`` -> x ``[1, T, C]``."""
        return (self.emb[token],)

    def example_inputs(self) -> dict[str, Tensor]:
        """``token``."""
        return {"token": torch.zeros(1, self.T, dtype=torch.int32)}

    def output_names(self) -> list[str]:
        """``x``."""
        return ["x"]


class Rwkv7Head(Rwkv7):
    """The residual stream to logits of every position."""

    def __init__(self, arrays: Arrays, *, T: int, every_position: bool = True, weight_group: int = 1) -> None:
        """Takes ``ln_out`` and ``head.weight``; *every_position* is this class's or its subclass's own."""
        del every_position, weight_group
        nn.Module.__init__(self)
        self.T = T
        self.ln_out = LayerNorm(arrays, "ln_out")
        self.head = Linear(arrays, "head")

    def forward(self, x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        """X ``[1, T, C]`` -> logits ``[1, T, V]``."""
        return (self.head(self.ln_out(x)),)

    def example_inputs(self) -> dict[str, Tensor]:
        """``x``."""
        return {"x": torch.zeros(1, self.T, len(self.ln_out.weight))}

    def output_names(self) -> list[str]:
        """``logits``."""
        return ["logits"]


class Rwkv7LastHead(Rwkv7Head):
    """The same for the last position alone."""

    def forward(self, x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        """X ``[1, T, C]`` -> logits ``[1, 1, V]``."""
        return super().forward(x[:, -1:])
