"""The floor under a graph's predicted time: what any compiler must move and compute, at the best rate seen.

The minimum: every weight once, of the embedding one row a token, the state once in and once out, the logits once out;
of a layer alone, the residual stream in and out and the first layer's values in, in their place. What passes between
operations counts nothing: it could stay in local memory.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compile.spec import GraphKind, GraphSpec, Quantization

if TYPE_CHECKING:
    from collections.abc import Mapping

    Shapes = Mapping[str, tuple[int, ...]]

GROUP = 64
"""Inputs of a matrix that share a step (float16) and a zero point (one byte) in the W formats."""

OPERATIONS_PER_NS = 16_000
"""The vendor's figure for BM1684X in float16: 16 TFLOPS."""

_TOKEN_BYTES = 4
_ACTIVATION_BYTES = 4
_STATE_BYTES = 4
_BITS = {Quantization.W8F16: 8, Quantization.W4F16: 4}
# Stored [out, in]; the LoRA pairs [in, out].
_MATRIX = re.compile(r"head\.weight|blocks\.\d+\.(att\.(receptance|key|value|output)|ffn\.(key|value))\.weight")
_LOW_RANK = re.compile(r"blocks\.\d+\.att\.[wavg][12]")
_FOLDED = re.compile(r"blocks\.0\.ln0\.(weight|bias)|blocks\.0\.att\.v[012]")  # into the embedding; never used


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimum:
    """What one call of a graph cannot do without, in bytes and in operations (a product and a sum are two)."""

    weight_bytes: int
    embedding_bytes: int
    state_bytes: int  # in and out
    io_bytes: int  # token ids in, logits out; of a layer alone, the residual stream in and out and v_first in
    operations: int

    @property
    def total_bytes(self) -> int:
        """All that must pass between DDR and the chip."""
        return self.weight_bytes + self.embedding_bytes + self.state_bytes + self.io_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The minimum as time, by a rate of memory and one of arithmetic."""

    minimum: Minimum
    bytes_per_ns: float
    operations_per_ns: float

    @property
    def memory_ns(self) -> float:
        """What moving the bytes takes."""
        return self.minimum.total_bytes / self.bytes_per_ns

    @property
    def compute_ns(self) -> float:
        """What the operations take."""
        return self.minimum.operations / self.operations_per_ns

    @property
    def ns(self) -> float:
        """The longer of the two: at best they overlap."""
        return max(self.memory_ns, self.compute_ns)

    @property
    def by_memory(self) -> bool:
        """Whether memory decides."""
        return self.memory_ns >= self.compute_ns

    def share(self, predicted_ns: float) -> float:
        """How much of the possible speed a predicted time reaches: 1 is the floor itself."""
        return self.ns / predicted_ns


def floor(minimum: Minimum, bytes_per_ns: float, operations_per_ns: float = OPERATIONS_PER_NS) -> Floor:
    """The floor at a rate of memory; see :mod:`compile.sweep` for where that comes from.

    Raises:
        ValueError: a rate is not positive.
    """
    if not (bytes_per_ns > 0 and operations_per_ns > 0):
        raise ValueError(f"rates {bytes_per_ns} and {operations_per_ns}, but should both be positive")
    return Floor(minimum=minimum, bytes_per_ns=bytes_per_ns, operations_per_ns=operations_per_ns)


def minimum(
    shapes: Shapes,
    spec: GraphSpec,
    quantization: Quantization,
    *,
    state_bytes: int = _STATE_BYTES,
) -> Minimum:
    """What one call must move and compute.

    Args:
        shapes: of the model's tensors, by BlinkDL's names; without an embedding, of layers that stand alone.
        spec: kind of graph and tokens a call.
        quantization: of the matrices, LoRA pairs among them; vectors and the embedding stay F16 in the W formats.
        state_bytes: bytes of one element of a state, 4 for float32.
    """
    heads = [shape for name, shape in shapes.items() if name.endswith(".att.r_k")]
    L, (H, N) = len(heads), heads[0]
    C = H * N
    rows = 1 if spec.kind is GraphKind.PREFILL else spec.T
    weight_bytes = operations = 0
    for name, shape in shapes.items():
        if name == "emb.weight" or _FOLDED.fullmatch(name):
            continue
        if (transposed := _MATRIX.fullmatch(name)) or _LOW_RANK.fullmatch(name):
            outputs, inputs = shape if transposed else reversed(shape)
            weight_bytes += matrix_bytes(inputs, outputs, quantization, filled=name.endswith("2"))
            operations += 2 * inputs * outputs * (rows if name == "head.weight" else spec.T)
        else:
            weight_bytes += math.prod(shape) * _element_bytes(quantization)
    # The recurrence, token by token: decay 1, S a and S r 2 each, the two updates 2 each, an element of the state.
    operations += 9 * L * H * N * N * spec.T
    if "emb.weight" in shapes:
        embedding_bytes = spec.T * C * _element_bytes(quantization)
        io_bytes = spec.T * _TOKEN_BYTES + rows * shapes["emb.weight"][0] * _element_bytes(quantization)
    else:
        embedding_bytes, io_bytes = 0, 3 * spec.T * C * _ACTIVATION_BYTES
    return Minimum(
        weight_bytes=weight_bytes,
        embedding_bytes=embedding_bytes,
        state_bytes=2 * L * (2 * C + H * N * N) * state_bytes,
        io_bytes=io_bytes,
        operations=operations,
    )


def matrix_bytes(inputs: int, outputs: int, quantization: Quantization, *, filled: bool = False) -> int:
    """What a matrix takes as the compiler stores it; one that the groups do not divide stays F16.

    Unless it is *filled* up to whole groups with zeros, which graphs do with LoRA ranks; the zeros do not count.
    """
    bits = _BITS.get(quantization)
    if bits is None or (inputs % GROUP and not filled):
        return inputs * outputs * _element_bytes(quantization)
    groups = -(-inputs // GROUP) * outputs
    return inputs * outputs * bits // 8 + groups * 3


def _element_bytes(quantization: Quantization) -> int:
    return 4 if quantization is Quantization.F32 else 2
