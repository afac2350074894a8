"""Matrices that graphs of many tokens keep in F16 though weights are coded in 8 or 4 bits: those of time-mix.

A product with coded weights (``A16MatMul``) never joins a layer group: its rows come from outer memory and go back
there, and transfer and arithmetic take turns. For one token that is free. For many it costs more than the bytes that
the code saves: two layers at 0.1B in W4F16 take 493 us and not 527 at 32 tokens, 617 and not 759 at 64, 912 and not
1346 at 128, 1510 and not 2472 at 256, once time-mix, which has twelve of the fourteen products of a layer, is in F16.
Channel-mix and head, three quarters of the elements of a 0.1B model, stay coded.

What is kept wide are the values that the codes stand for, so that a prompt means to prefill what it means to decode.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from compile.parts import PartSpec
from compile.products import constant_products
from compile.spec import Quantization

if TYPE_CHECKING:
    from pathlib import Path

    from compile.dims import Arrays
    from compile.spec import GraphSpec

_CODED = {Quantization.W8F16, Quantization.W4F16}

_OUT_IN = re.compile(r"\.att\.(receptance|key|value|output)\.weight$")
_LORA_FIRST = re.compile(r"\.att\.[wavg]1$")
_LORA_SECOND = re.compile(r"\.att\.[wavg]2$")

_IN_TABLE = re.compile(r"^(\S+) F16$", re.MULTILINE)

TABLE = "f32_operations.txt"
"""The table of a compile: the operations whose type is not the quantisation's own, as ``NAME TYPE`` a line."""


def keeps_wide(spec: GraphSpec, quantization: Quantization) -> bool:
    """Whether a graph does: of many tokens, and a whole model. Nets of parts share their weights with decode's."""
    return quantization in _CODED and spec.T > 1 and not isinstance(spec, PartSpec)


def as_coded(arrays: Arrays, quantization: Quantization, group: int) -> Arrays:
    """The same with the matrices of time-mix replaced by what their codes stand for, for groups of *group* inputs."""
    return {name: _as_coded(name, array, quantization.weight_bits, group) for name, array in arrays.items()}


def _as_coded(name: str, array: np.ndarray, bits: int, group: int) -> np.ndarray:
    if _OUT_IN.search(name):
        return np.ascontiguousarray(coded(array.T, bits, group).T) if array.shape[1] % group == 0 else array
    if _LORA_FIRST.search(name):
        return coded(array, bits, group) if len(array) % group == 0 else array
    if _LORA_SECOND.search(name):
        # Decode fills ranks up with zeros, which no range of a group leaves out anyway.
        filled = np.pad(array, ((0, -len(array) % group), (0, 0)))
        return coded(filled, bits, group)[: len(array)]
    return array


def coded(W: np.ndarray, bits: int, group: int) -> np.ndarray:
    """What the compiler's code keeps of W ``[in, out]``, float32: (q - z) s, with s in float16.

    For each output and *group* consecutive inputs, whose range is widened to contain 0, s is the range over 2^bits - 1,
    and q and z are whole numbers from 0 to that.
    """
    levels = np.float32(2**bits - 1)
    groups = W.astype(np.float32).reshape(-1, group, W.shape[1])
    low = np.minimum(groups.min(axis=1, keepdims=True), 0)
    high = np.maximum(groups.max(axis=1, keepdims=True), 0)
    step = (high - low) / levels
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.rint(-low / step)
        codes = np.clip(np.rint(groups / step) + zero, 0, levels)
        kept = (codes - zero) * step.astype(np.float16).astype(np.float32)
    return np.where(step > 0, kept, np.float32(0)).astype(np.float32).reshape(W.shape)


def wide_products(mlir: str) -> list[str]:
    """The names of the products with a constant matrix of time-mix in the text of a TOP dialect."""
    return [one.name for one in constant_products(mlir) if ".att." in one.weight]


def declared_wide(folder: Path) -> tuple[str, ...]:
    """The products that the graph of a finished compile asked to be left in F16; none where there is no table."""
    table = folder / TABLE
    return tuple(_IN_TABLE.findall(table.read_text())) if table.is_file() else ()
