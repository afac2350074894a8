"""Groups of weights of one sign: of these the compiler's coder cuts off the largest, without a word.

An asymmetric code keeps w as (q - z) s, with s = (high - low) / (2^bits - 1) and z = -low / s of the group's own range.
Where the group does not reach 0, z lies outside of 0 to 2^bits - 1 and is cut to it, and codes are cut as well, so that
the largest weight comes out as high - low (docs/findings/group_of_one_sign.md). What a matrix loses follows from its
weights, which lie beside the TOP dialect until a compile ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from compile.products import constant_products

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """A product some of whose weights come out more than a step off.

    Attributes:
        product: its name in the TOP dialect.
        groups: how many groups of its matrix are of one sign, and further than a step from 0.
        of: how many groups it has.
        worst: the largest part of a group's largest weight that is cut off, above 0 and up to 1.
    """

    product: str
    groups: int
    of: int
    worst: float


def cut_products(mlir: str, weights: Path, coded: Collection[str], *, bits: int, group: int) -> tuple[Cut, ...]:
    """The products that lose weights, in the order of the graph.

    Args:
        mlir: the text of the TOP dialect.
        weights: the file beside it with its weights.
        coded: names of the products whose matrix is in codes; others lose nothing.
        bits: of a code.
        group: consecutive inputs of a matrix that share a code.
    """
    found = []
    with np.load(weights) as arrays:
        for one in constant_products(mlir):
            if one.name in coded and one.weight in arrays:
                matrix = arrays[one.weight].T if one.transposed else arrays[one.weight]
                found.append(cut_of(one.name, matrix, bits=bits, group=group))
    return tuple(one for one in found if one is not None)


def cut_of(product: str, matrix: np.ndarray, *, bits: int, group: int) -> Cut | None:
    """What a matrix ``[in, out]``, float32, loses; None where it is nothing, or where the group does not divide it."""
    if matrix.ndim != 2 or len(matrix) % group:
        return None
    groups = matrix.reshape(-1, group, matrix.shape[1])
    low, high = groups.min(axis=1), groups.max(axis=1)
    # What lies between 0 and the group is lost from the weight that is furthest from it.
    lost = np.maximum(np.maximum(low, -high), 0)
    cut = lost > (high - low) / (2**bits - 1)
    if not cut.any():
        return None
    largest = np.maximum(np.abs(low), np.abs(high))
    return Cut(product=product, groups=int(cut.sum()), of=cut.size, worst=float((lost[cut] / largest[cut]).max()))
