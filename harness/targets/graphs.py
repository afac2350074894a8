"""Graphs that compute on this machine, arrays in and arrays out, as a target: every position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from compile.stacked_state import stacked_shapes
from harness.targets.base import Output, StateArrays
from runtime.piece import pieces_of_stacks, put_together, take_apart

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from compile.dims import Dims


class Net(Protocol):
    """One graph of T tokens."""

    def run(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Token ids ``[1, T]`` int32, or rows ``[1, T, C]``, and states in; all logits and the next states out."""
        ...


class GraphTarget:
    """A decode graph and graphs of several tokens: every position."""

    def __init__(
        self, nets: Mapping[int, Net], dims: Dims, embedding: np.ndarray | None = None, *, stacked: bool = False
    ) -> None:
        """*nets* by the tokens that a call takes; the one of 1 takes the tail.

        Where the embedding is not in them, they take rows of *embedding* ``[V, C]`` in place of tokens; with *stacked*,
        the states of all layers in two tensors.
        """
        self._nets = nets
        self._dims = dims
        self._stacks = tuple(stacked_shapes(dims).values()) if stacked else ()
        self._pieces = pieces_of_stacks(self._stacks)
        self._embedding = embedding

    def run(self, tokens: Sequence[int], state: StateArrays | None = None) -> Output:
        """Logits of every position, whole chunks first, the tail token by token; nothing is ever padded.

        Raises:
            ValueError: no tokens, or one outside the vocabulary.
        """
        check_tokens(tokens, self._dims.V)
        arrays = state_inputs(state, self._dims)
        if self._pieces:
            arrays = put_together(arrays, self._pieces, self._stacks)
        rows: list[np.ndarray] = []
        for T, chunk in chunks(tokens, self._nets):
            ids = np.array([chunk], np.int32)
            fed = ids if self._embedding is None else self._embedding[ids]
            logits, *arrays = self._nets[T].run([fed, *arrays])
            rows.append(logits.reshape(T, -1))
        after = take_apart(arrays, self._pieces) if self._pieces else state_outputs(arrays)
        return Output(tuple(range(len(tokens))), np.concatenate(rows), after)


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Refuse what a graph would take for a row somewhere in memory.

    Raises:
        ValueError: no tokens, or one outside the vocabulary.
    """
    if not tokens:
        raise ValueError("expected at least one token")
    if wrong := [token for token in tokens if not 0 <= token < vocabulary]:
        raise ValueError(f"token {wrong[0]} is outside the vocabulary [0, {vocabulary})")


def chunks(tokens: Sequence[int], lengths: Iterable[int]) -> Iterator[tuple[int, Sequence[int]]]:
    """Cut *tokens* into whole chunks of *lengths*, the longest first; with a length of 1 nothing is left over."""
    start = 0
    for T in sorted(lengths, reverse=True):
        while len(tokens) - start >= T:
            yield T, tokens[start : start + T]
            start += T


def state_inputs(state: StateArrays | None, dims: Dims) -> StateArrays:
    """A state in the shapes of a graph's inputs, float32; None is the zero state."""
    shapes = [shape for _, shape in dims.state_shapes()]
    if state is None:
        return [np.zeros(shape, np.float32) for shape in shapes]
    return [np.asarray(array, np.float32).reshape(shape) for array, shape in zip(state, shapes, strict=True)]


def state_outputs(arrays: Sequence[np.ndarray]) -> StateArrays:
    """A graph's states in the targets' common shapes: the WKV matrices as they are, the shifts as vectors."""
    return [array if i % 3 == 1 else array.reshape(-1) for i, array in enumerate(arrays)]
