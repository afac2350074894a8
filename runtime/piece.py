"""Where in the state tensors of a net the numbers of one state lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.nets import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One state inside a tensor that may hold several, or hold it in another order.

    Attributes:
        state: the tensor's number among a net's states.
        axes: its shape with every axis by itself.
        index: for each of *axes*, the place on it; None where all of it belongs to the state.
        order: the axes that are left, in the order that the state has.
        shape: of the state.
    """

    state: int
    axes: tuple[int, ...]
    index: tuple[int | None, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def view(self, tensor: Floats) -> Floats:
        """The state's numbers in *tensor*, contiguous, which they share memory with; axes in the state's order."""
        places = tuple(slice(None) if at is None else at for at in self.index)
        return tensor.reshape(self.axes)[places].transpose(self.order)


def pieces_of_stacks(shapes: Sequence[tuple[int, ...]]) -> tuple[Piece, ...]:
    """Where the states of each layer lie in two stacks, as :mod:`runtime.nets` has them; nowhere in other tensors.

    Args:
        shapes: of the state tensors, in their order.
    """
    match list(shapes):
        case [(rows, 1, C), (matrices, N, columns)] if 0 < N == columns and C % N == 0:
            L, H = rows // 2, C // N
            if (rows, matrices) != (2 * L, L * H):
                return ()
        case _:
            return ()

    def shift(layer: int, which: int) -> Piece:
        return Piece(state=0, axes=(L, 2, C), index=(layer, which, None), order=(0,), shape=(C,))

    def wkv(layer: int) -> Piece:
        return Piece(state=1, axes=(L, H, N, N), index=(layer, None, None, None), order=(0, 1, 2), shape=(H, N, N))

    return tuple(piece for i in range(L) for piece in (shift(i, 0), wkv(i), shift(i, 1)))


def take_apart(tensors: Sequence[Floats], pieces: Sequence[Piece]) -> list[Floats]:
    """The states that *tensors* hold: copies, in the order of *pieces*."""
    return [piece.view(tensors[piece.state]).reshape(piece.shape).copy() for piece in pieces]


def put_together(arrays: Sequence[Floats], pieces: Sequence[Piece], shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
    """Tensors of *shapes* that hold the states *arrays*, zero where no piece lies.

    Raises:
        ValueError: number or sizes of the arrays differ from what the pieces say.
    """
    tensors = [np.zeros(shape, np.float32) for shape in shapes]
    for array, piece in zip(arrays, pieces, strict=True):
        view = piece.view(tensors[piece.state])
        view[...] = np.asarray(array, np.float32).reshape(view.shape)
    return tensors
