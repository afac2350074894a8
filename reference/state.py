"""The recurrent state: all that a model remembers of the tokens before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from reference.shape import ModelShape


@dataclass(frozen=True, slots=True)
class State:
    """Three tensors a layer, stacked over the L layers.

    Attributes:
        att_shift: ``[L, C]``: the time-mix's normalised input of the last token.
        wkv: ``[L, H, N, N]``: the WKV matrices, rows are values, columns are keys.
        ffn_shift: ``[L, C]``: the channel-mix's normalised input of the last token.
    """

    att_shift: Tensor
    wkv: Tensor
    ffn_shift: Tensor

    @classmethod
    def zeros(cls, shape: ModelShape, dtype: torch.dtype) -> State:
        """Before the first token."""
        return cls(*(torch.zeros(size, dtype=dtype) for size in cls.sizes(shape)))

    @classmethod
    def random(cls, shape: ModelShape, seed: int, dtype: torch.dtype) -> State:
        """A non-zero state, standard normal throughout: what a graph must not assume away."""
        generator = torch.Generator().manual_seed(seed)
        return cls(
            *(torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in cls.sizes(shape))
        )

    @staticmethod
    def sizes(shape: ModelShape) -> tuple[tuple[int, ...], ...]:
        """Shapes of the three tensors."""
        L, C, H, N = shape.n_layer, shape.n_embd, shape.n_head, shape.head_size
        return (L, C), (L, H, N, N), (L, C)

    def to(self, dtype: torch.dtype) -> State:
        """The same state in another dtype."""
        return State(self.att_shift.to(dtype), self.wkv.to(dtype), self.ffn_shift.to(dtype))

    def arrays(self) -> list[np.ndarray]:
        """Float32 arrays, layer by layer: time-mix shift ``[C]``, WKV ``[H, N, N]``, channel-mix shift ``[C]``."""
        layers = zip(self.att_shift, self.wkv, self.ffn_shift, strict=True)
        return [tensor.to(torch.float32).numpy() for layer in layers for tensor in layer]

    @classmethod
    def from_arrays(cls, arrays: Sequence[np.ndarray], dtype: torch.dtype) -> State:
        """Inverse of :meth:`arrays`."""
        return cls(*(torch.stack([torch.as_tensor(a) for a in arrays[part::3]]).to(dtype) for part in range(3)))
