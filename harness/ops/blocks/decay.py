"""The decay of a channel, and its sum over time, which the chunk form of the recurrence is relative to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from harness.ops.block import Arrays, Block, Keep, Shape, named, normal, sigmoid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.ops.graph import Graph

SLOWEST = math.exp(-0.5)
"""``-log w`` lies between 0 and this."""


def _inputs(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"d": normal(rng, 1, s.T, s.C, scale=2.0)}


def _decay(x: Arrays, _: Arrays, keep: Keep) -> list[np.ndarray]:
    return [keep(np.exp(-keep(SLOWEST * keep(sigmoid(x["d"])))))]


def exp_sigmoid(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """``exp(-0.6065 sigmoid(d))``."""
    return [g("Exp", g("Mul", g("Sigmoid", x["d"]), g.const(-SLOWEST)))]


def exp_exp_softplus(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """``exp(-exp(-softplus(-d) - 0.5))``, as training code writes it."""
    log = g("Sub", g("Neg", g("Softplus", g("Neg", x["d"]))), g.const(0.5))
    return [g("Exp", g("Neg", g("Exp", log)))]


def exp_exp_log(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """The same with softplus as ``log(1 + exp)``."""
    softplus = g("Log", g("Add", g("Exp", g("Neg", x["d"])), g.const(1.0)))
    return [g("Exp", g("Neg", g("Exp", g("Sub", g("Neg", softplus), g.const(0.5)))))]


def reciprocal(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """The sigmoid as ``1 / (1 + exp(-d))``."""
    whole = g("Reciprocal", g("Add", g("Exp", g("Neg", x["d"])), g.const(1.0)))
    return [g("Exp", g("Mul", whole, g.const(-SLOWEST)))]


def power(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """``0.5452 ** sigmoid(d)``: a constant to the power of a tensor."""
    return [g("Pow", g.const(math.exp(-SLOWEST)), g("Sigmoid", x["d"]))]


def tanh(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """The sigmoid by the hyperbolic tangent of half of d."""
    half = g("Mul", g("Tanh", g("Mul", x["d"], g.const(0.5))), g.const(-SLOWEST / 2))
    return [g("Exp", g("Add", half, g.const(-SLOWEST / 2)))]


DECAY = Block(
    name="decay",
    inputs=_inputs,
    formula=_decay,
    idioms=named(exp_sigmoid, exp_exp_softplus, exp_exp_log, reciprocal, power, tanh),
)


def _log_inputs(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"log_w": (-0.3 * rng.random((1, s.T, s.H, s.N))).astype(np.float32)}


def _sum(x: Arrays, _: Arrays, keep: Keep) -> list[np.ndarray]:
    return [keep(np.cumsum(keep(x["log_w"]), axis=1))]


def cumsum(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """CumSum of rank 4."""
    return [g("CumSum", x["log_w"], g.const(np.array(1, np.int64)))]


def cumsum_channels(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """Of rank 3, heads joined."""
    summed = g("CumSum", g.reshape(x["log_w"], 1, s.T, s.C), g.const(np.array(1, np.int64)))
    return [g.reshape(summed, 1, s.T, s.H, s.N)]


def cumsum_chunks(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """Of rank 5, with an axis for chunks, as chunked kernels' reference code has it."""
    chunks = g.reshape(x["log_w"], 1, 1, s.T, s.H, s.N)
    return [g.reshape(g("CumSum", chunks, g.const(np.array(2, np.int64))), 1, s.T, s.H, s.N)]


def cumsum_exclusive(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """The sum of what lies before, and the token's own added."""
    before = g("CumSum", x["log_w"], g.const(np.array(1, np.int64)), exclusive=1)
    return [g("Add", before, x["log_w"])]


def cumsum_reverse(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """From the end: the whole sum, less the sum from here on, and the token's own added."""
    behind = g("CumSum", x["log_w"], g.const(np.array(1, np.int64)), reverse=1)
    whole = g("ReduceSum", x["log_w"], g.ints(1), keepdims=1)
    return [g("Add", g("Sub", whole, behind), x["log_w"])]


def cumsum_negative_axis(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """The axis counted from the end."""
    return [g("CumSum", x["log_w"], g.const(np.array(-3, np.int64)))]


def tril_matmul(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """A product with ones on and below the diagonal."""
    summed = g("MatMul", g.const(np.tril(np.ones((1, s.T, s.T)))), g.reshape(x["log_w"], 1, s.T, s.C))
    return [g.reshape(summed, 1, s.T, s.H, s.N)]


def unrolled(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """One addition a token."""
    rows = [g.slice(x["log_w"], t, t + 1, 1) for t in range(s.T)]
    for t in range(1, s.T):
        rows[t] = g("Add", rows[t - 1], rows[t])
    return [g("Concat", *rows, axis=1)]


def conv(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """A convolution with a kernel of ones, padded on the left."""
    columns = g("Transpose", g.reshape(x["log_w"], 1, s.T, s.C), perm=[0, 2, 1])
    rows = g.reshape(columns, s.C, 1, s.T)
    summed = g("Conv", rows, g.const(np.ones((1, 1, s.T))), kernel_shape=[s.T], pads=[s.T - 1, 0])
    back = g("Transpose", g.reshape(summed, 1, s.C, s.T), perm=[0, 2, 1])
    return [g.reshape(back, 1, s.T, s.H, s.N)]


DECAY_SUM = Block(
    name="decay_sum",
    inputs=_log_inputs,
    formula=_sum,
    idioms=named(
        cumsum,
        cumsum_channels,
        cumsum_chunks,
        cumsum_exclusive,
        cumsum_reverse,
        cumsum_negative_axis,
        tril_matmul,
        unrolled,
        conv,
    ),
    tokens=2,
)
