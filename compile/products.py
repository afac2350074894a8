"""The products of the TOP dialect that have a constant matrix: by which names the compiler knows them."""

from __future__ import annotations

import re
from typing import NamedTuple

_WEIGHT = re.compile(r'^\s*(%\w+) = "top\.Weight"\(.*loc\((#loc\d*)\)\s*$', re.MULTILINE)
_PRODUCT = re.compile(r'^\s*%\w+ = "top\.MatMul"\(%\w+, (%\w+),(.*)loc\((#loc\d*)\)\s*$', re.MULTILINE)
_NAME = re.compile(r'^(#loc\d*) = loc\("([^"]*)"\)', re.MULTILINE)
_FUSED = re.compile(r"^(#loc\d*) = loc\(fused\[(#loc\d*)", re.MULTILINE)


class Product(NamedTuple):
    """A product with a constant matrix.

    Attributes:
        name: the compiler's; with a bias or a ReLU a product is one operation, which has the name of the last of them.
        weight: the matrix's name, as in the file of weights beside the dialect.
        transposed: whether it is stored as ``[out, in]``.
    """

    name: str
    weight: str
    transposed: bool


def constant_products(mlir: str) -> list[Product]:
    """The products in the text of a TOP dialect, in its order."""
    names = dict(_NAME.findall(mlir))
    names |= {location: names.get(first, "") for location, first in _FUSED.findall(mlir)}
    weights = {weight: names.get(location, "") for weight, location in _WEIGHT.findall(mlir)}
    return [
        Product(names[location], weights[weight], "right_transpose = true" in attributes)
        for weight, attributes, location in _PRODUCT.findall(mlir)
        if weight in weights
    ]
