"""LoRA pairs: a narrow product, an activation, a wide product; the decay's, the gate's and the rate's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.ops.block import Arrays, Block, Idiom, Keep, Shape, normal, sigmoid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.ops.graph import Graph

RANK = 64

Activation = tuple[str, ...]
"""ONNX operators of the middle; none for the rate's pair, whose sigmoid is behind the bias."""


def _inputs(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": normal(rng, 1, s.T, s.C)}


def _weights(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    down, up = normal(rng, s.C, RANK), normal(rng, RANK, s.C)
    bias = normal(rng, s.C)
    return {"down": down / np.float32(np.sqrt(s.C)), "up": up / np.float32(np.sqrt(RANK)), "bias": bias}


def _formula(
    middle: Callable[[np.ndarray], np.ndarray], last: Callable[[np.ndarray], np.ndarray], *, biased: bool
) -> Callable[[Arrays, Arrays, Keep], list[np.ndarray]]:
    def formula(x: Arrays, w: Arrays, keep: Keep) -> list[np.ndarray]:
        wide = keep(keep(middle(keep(keep(x["x"]) @ w["down"]))) @ w["up"])
        return [keep(last(keep(wide + w["bias"]) if biased else wide))]

    return formula


def _chain(g: Graph, x: str, operators: Activation) -> str:
    for operator in operators:
        x = g(operator, x)
    return x


def _idioms(middle: Activation, last: Activation, *, biased: bool) -> dict[str, Idiom]:
    def behind(g: Graph, wide: str, w: Arrays) -> str:
        return _chain(g, g("Add", wide, g.const(w["bias"])) if biased else wide, last)

    def matmul(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
        narrow = _chain(g, g("MatMul", x["x"], g.const(w["down"])), middle)
        return [behind(g, g("MatMul", narrow, g.const(w["up"])), w)]

    def gemm(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
        rows = g.reshape(x["x"], s.T, s.C)
        narrow = _chain(g, g("Gemm", rows, g.const(w["down"].T), transB=1), middle)
        bias = [g.const(w["bias"])] if biased else []
        wide = g("Gemm", narrow, g.const(w["up"].T), *bias, transB=1)
        return [g.reshape(_chain(g, wide, last), 1, s.T, s.C)]

    def transposed(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
        """The checkpoint's [out, in], with a Transpose node for each."""
        down = g("Transpose", g.const(w["down"].T), perm=[1, 0])
        up = g("Transpose", g.const(w["up"].T), perm=[1, 0])
        narrow = _chain(g, g("MatMul", x["x"], down), middle)
        return [behind(g, g("MatMul", narrow, up), w)]

    def conv(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
        columns = g.reshape(g("Transpose", x["x"], perm=[0, 2, 1]), 1, s.C, 1, s.T)
        narrow = _chain(g, g("Conv", columns, g.const(w["down"].T[:, :, None, None]), kernel_shape=[1, 1]), middle)
        bias = [g.const(w["bias"])] if biased else []
        wide = g("Conv", narrow, g.const(w["up"].T[:, :, None, None]), *bias, kernel_shape=[1, 1])
        rows = g("Transpose", g.reshape(_chain(g, wide, last), 1, s.C, s.T), perm=[0, 2, 1])
        return [rows]

    def batched(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
        """Two pairs in one batched product of rank 3, as stacked weights have it; the first is taken."""
        down, up = (g.const(np.stack([w[name], -w[name]])) for name in ("down", "up"))
        narrow = _chain(g, g("MatMul", x["x"], down), middle)
        wide = g.slice(g("MatMul", narrow, up), 0, 1, 0)
        return [behind(g, wide, w)]

    return {f.__name__: f for f in (matmul, gemm, transposed, conv, batched)}


def _pair(
    name: str,
    middle: Activation,
    last: Activation,
    formula: Callable[[Arrays, Arrays, Keep], list[np.ndarray]],
    *,
    biased: bool,
) -> Block:
    return Block(
        name=name,
        inputs=_inputs,
        weights=_weights,
        matrices=("down", "up"),
        formula=formula,
        idioms=_idioms(middle, last, biased=biased),
    )


def _same(x: np.ndarray) -> np.ndarray:
    return x


LORA_DECAY = _pair("lora_decay", ("Tanh",), (), _formula(np.tanh, _same, biased=True), biased=True)
LORA_GATE = _pair("lora_gate", ("Sigmoid",), (), _formula(sigmoid, _same, biased=False), biased=False)
LORA_RATE = _pair("lora_rate", (), ("Sigmoid",), _formula(_same, sigmoid, biased=True), biased=True)
