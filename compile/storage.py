"""What precision a compiled model really has: matrices by the format they are stored in, operations by their type.

The name of a quantisation is a wish: what the compiler cannot quantise, and what is told to stay in float32, is not.
Both are read from the final MLIR, whose format is the same in TPU-MLIR 1.28.1 and 1.30.2.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import msgspec

from compile.spec import Quantization
from compile.timeline import FINAL_MLIR

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_OPERATION = re.compile(r'^\s*%(\w+)(?::\d+)? = "(tpu|top)\.(\w+)"\(([^)]*)\)')
_TENSOR = re.compile(r"tensor<((?:\d+x)*)(\w+)")
_BITS = re.compile(r"\bweight_bits = (\d+)")
_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "si32": 4, "ui32": 4, "si16": 2, "ui16": 2, "si8": 1, "ui8": 1}
_FORMATS = {"f32": 32, "f16": 16, "bf16": 16}
_PRODUCTS = ("MatMul", "A16MatMul")
# They move, or give a value another type; Group and Yield are brackets around others.
_MOVES = frozenset({"Load", "Store", "Cast", "Reshape", "Slice", "Concat", "Permute", "Gather", "Group", "Yield"})
_LOCATION = re.compile(r'^(#loc\d*) = loc\("([^"]*)"\)', re.MULTILINE)
_AT = re.compile(r'loc\((?:"([^"]*)"|(#loc\d*))\)\s*$')


class StorageError(ValueError):
    """A final MLIR that is missing or in another format; names the file and the line."""


class Matrices(msgspec.Struct, frozen=True, kw_only=True):
    """Matrices of one storage format."""

    bits: int  # of an element
    count: int
    bytes: int  # with steps and zero points
    names: tuple[str, ...] = ()  # of the products, as in the TOP dialect


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """What one compiled model stores and computes in.

    Attributes:
        matrices: constant right sides of matrix products, by format, the fewest bits first.
        operations: operations that compute; what only moves data or changes its type is none.
        f32_operations: those of them whose result is float32.
    """

    matrices: tuple[Matrices, ...]
    operations: int
    f32_operations: int

    def above(self, quantization: Quantization) -> tuple[Matrices, ...]:
        """The matrices that are stored in more bits than the quantisation's name says."""
        own = quantization.weight_bits or (32 if quantization is Quantization.F32 else 16)
        return tuple(one for one in self.matrices if one.bits > own)

    def named(self, bits: int) -> tuple[str, ...]:
        """Names of the products whose matrix is stored in so many bits an element."""
        return tuple(name for one in self.matrices if one.bits == bits for name in one.names)

    def wider(self, quantization: Quantization, declared: Collection[str] = ()) -> tuple[str, ...]:
        """Names of the products whose matrix the compiler left in more bits, but for those *declared* to be so."""
        return tuple(name for one in self.above(quantization) for name in one.names if name not in declared)


def read_storage(folder: Path) -> Storage:
    """Read the final MLIR in the folder of a compile.

    Raises:
        StorageError: there is none, or several, or a line is not understood.
    """
    found = sorted(folder.glob(FINAL_MLIR))
    if len(found) != 1:
        raise StorageError(f"{folder}: {len(found)} files {FINAL_MLIR}, but a static compile leaves one")
    return parse_storage(found[0].read_text(errors="replace"), str(found[0]))


def parse_storage(text: str, source: str) -> Storage:
    """The storage in a final MLIR's text; *source* is its name in an error.

    Raises:
        StorageError: a line is not understood, or there is no operation.
    """
    weights: dict[str, tuple[int, int]] = {}  # the line that defines a weight, and its bytes, by the name it has now
    # Bits and bytes of a matrix and the product's name, by that line: one that is used twice is one.
    products: dict[int, tuple[int, int, str]] = {}
    locations = dict(_LOCATION.findall(text))
    operations = f32 = 0
    for number, line in enumerate(text.splitlines(), 1):
        operation = _OPERATION.match(line)
        if operation is None:
            continue
        result, dialect, kind, inputs = operation.groups()
        operands = [one.strip(" %") for one in inputs.split(",")]
        # Names are used again once a region ends, so the latest definition is the one that is meant.
        known = weights.get(operands[0]) if kind == "Load" else None
        weights.pop(result, None)
        if kind == "Weight":
            weights[result] = number, _bytes(_type(line, -1), f"{source}:{number}")
        elif known:
            weights[result] = known
        elif dialect == "tpu" and kind not in _MOVES:
            operations += 1
            f32 += _type(line, -1)[1] == "f32"
        if kind in _PRODUCTS and len(operands) > 1 and operands[1] in weights:
            bits = _BITS.search(line)
            stored = [weights[one] for one in operands[1 : 4 if bits else 2] if one in weights]
            width = int(bits[1]) if bits else _FORMATS.get(_type(line, 1)[1], 8)
            at = _AT.search(line)
            name = (at[1] or locations.get(at[2], "")) if at else ""
            products[stored[0][0]] = width, sum(size for _, size in stored), name
    if not operations:
        raise StorageError(f"{source}: no line with an operation of the TPU dialect: not a final MLIR?")
    matrices = [
        Matrices(
            bits=width,
            count=sum(bits == width for bits, _, _ in products.values()),
            bytes=sum(size for bits, size, _ in products.values() if bits == width),
            names=tuple(name for bits, _, name in products.values() if bits == width and name),
        )
        for width in sorted({bits for bits, _, _ in products.values()})
    ]
    return Storage(matrices=tuple(matrices), operations=operations, f32_operations=f32)


def _type(line: str, which: int) -> tuple[tuple[int, ...], str]:
    """Shape and element of one of a line's tensors: 0 is its first operand, -1 its last result."""
    found = _TENSOR.findall(line[line.rindex(" : (") :] if " : (" in line else line)
    if not -len(found) <= which < len(found):
        return (), ""
    shape, element = found[which]
    return tuple(int(axis) for axis in shape.split("x")[:-1]), element


def _bytes(tensor: tuple[tuple[int, ...], str], where: str) -> int:
    shape, element = tensor
    if element not in _BYTES:
        raise StorageError(f"{where}: a weight of {element or 'no type'}, but should be one of {', '.join(_BYTES)}")
    return math.prod(shape) * _BYTES[element]
