"""The bonus of the current token, and channel-mix with its squared ReLU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.ops.block import Arrays, Block, Keep, Shape, named, normal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.ops.graph import Graph


def _channel_inputs(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": normal(rng, 1, s.T, s.C)}


def _channel_weights(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    up, down = normal(rng, s.C, 4 * s.C), normal(rng, 4 * s.C, s.C)
    return {"key": up / np.float32(np.sqrt(s.C)), "value": down / np.float32(np.sqrt(4 * s.C))}


def _channel_mix(x: Arrays, w: Arrays, keep: Keep) -> list[np.ndarray]:
    hidden = np.maximum(keep(keep(x["x"]) @ w["key"]), 0)
    return [keep(keep(hidden**2) @ w["value"])]


def _up(g: Graph, x: Mapping[str, str], w: Arrays) -> str:
    return g("MatMul", x["x"], g.const(w["key"]))


def _down(g: Graph, squared: str, w: Arrays) -> list[str]:
    return [g("MatMul", squared, g.const(w["value"]))]


def relu_mul(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """``h = relu(key x); h * h``."""
    h = g("Relu", _up(g, x, w))
    return _down(g, g("Mul", h, h), w)


def relu_pow(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """``relu(key x) ** 2``: what the releases' own code gives."""
    return _down(g, g("Pow", g("Relu", _up(g, x, w)), g.const(2.0)), w)


def relu_times_input(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """``h * relu(h)``, equal because relu is 0 where h is negative."""
    h = _up(g, x, w)
    return _down(g, g("Mul", h, g("Relu", h)), w)


def max_mul(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """``torch.maximum(h, 0)``."""
    h = g("Max", _up(g, x, w), g.const(0.0))
    return _down(g, g("Mul", h, h), w)


def where(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """``torch.where(h > 0, h * h, 0)``."""
    h, zero = _up(g, x, w), g.const(0.0)
    return _down(g, g("Where", g("Greater", h, zero), g("Mul", h, h), zero), w)


def clip(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """``h.clamp(min=0) ** 2``."""
    return _down(g, g("Pow", g("Clip", _up(g, x, w), g.const(0.0)), g.const(2.0)), w)


def abs_half(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """``(h + |h|) / 2``, for back ends without a ReLU."""
    h = _up(g, x, w)
    h = g("Mul", g("Add", h, g("Abs", h)), g.const(0.5))
    return _down(g, g("Mul", h, h), w)


def gemm(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """Gemm on rows, weights as they are stored, ``[out, in]``."""
    rows = g.reshape(x["x"], s.T, s.C)
    h = g("Relu", g("Gemm", rows, g.const(w["key"].T), transB=1))
    return [g.reshape(g("Gemm", g("Mul", h, h), g.const(w["value"].T), transB=1), 1, s.T, s.C)]


def conv(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """Convolutions of length 1 over [1, C, T], as exporters for image processors write linear layers."""
    columns = g("Transpose", x["x"], perm=[0, 2, 1])
    h = g("Relu", g("Conv", columns, g.const(w["key"].T[:, :, None]), kernel_shape=[1]))
    y = g("Conv", g("Mul", h, h), g.const(w["value"].T[:, :, None]), kernel_shape=[1])
    return [g("Transpose", y, perm=[0, 2, 1])]


CHANNEL_MIX = Block(
    name="channel_mix",
    inputs=_channel_inputs,
    weights=_channel_weights,
    matrices=("key", "value"),
    formula=_channel_mix,
    idioms=named(relu_mul, relu_pow, relu_times_input, max_mul, where, clip, abs_half, gemm, conv),
)


def _bonus_inputs(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: normal(rng, s.T, s.H, s.N, scale=0.5) for name in ("y", "r", "k", "v")}


def _bonus_weights(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"r_k": normal(rng, s.H, s.N, scale=0.5)}


def _bonus(x: Arrays, w: Arrays, keep: Keep) -> list[np.ndarray]:
    share = keep(keep(keep(x["r"] * x["k"]) * w["r_k"]).sum(axis=-1, keepdims=True))
    return [keep(x["y"] + keep(share * x["v"]))]


def reduce_sum(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """``(r * k * r_k).sum(-1, keepdim=True) * v``."""
    share = g.sum(g("Mul", g("Mul", x["r"], x["k"]), g.const(w["r_k"])), -1)
    return [g("Add", x["y"], g("Mul", share, x["v"]))]


def dot(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """A row times a column for each head."""
    row = g.reshape(g("Mul", x["r"], g.const(w["r_k"])), s.T, s.H, 1, s.N)
    share = g("MatMul", row, g.reshape(x["k"], s.T, s.H, s.N, 1))
    return [g("Add", x["y"], g("Mul", g.reshape(share, s.T, s.H, 1), x["v"]))]


def constant_matmul(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """The weighted sum as a product with r_k as columns [H, N, 1]."""
    share = g("MatMul", g.reshape(g("Mul", x["r"], x["k"]), s.T, s.H, 1, s.N), g.const(w["r_k"][None, :, :, None]))
    return [g("Add", x["y"], g("Mul", g.reshape(share, s.T, s.H, 1), x["v"]))]


def einsum(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """``einsum('thn,hn->th')``."""
    share = g("Einsum", g("Mul", x["r"], x["k"]), g.const(w["r_k"]), equation="thn,hn->th")
    return [g("Add", x["y"], g("Mul", g.reshape(share, s.T, s.H, 1), x["v"]))]


def heads_of_channels(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """On [1, T, C], with a sum over each head by a block matrix of ones."""
    r, k, v, y = (g.reshape(x[name], 1, s.T, s.C) for name in ("r", "k", "v", "y"))
    ones = np.kron(np.eye(s.H), np.ones((s.N, s.N)))
    share = g("MatMul", g("Mul", g("Mul", r, k), g.const(w["r_k"].reshape(-1))), g.const(ones))
    return [g.reshape(g("Add", y, g("Mul", share, v)), s.T, s.H, s.N)]


BONUS = Block(
    name="bonus",
    inputs=_bonus_inputs,
    weights=_bonus_weights,
    formula=_bonus,
    idioms=named(reduce_sum, dot, constant_matmul, einsum, heads_of_channels),
)
