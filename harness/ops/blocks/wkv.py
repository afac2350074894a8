"""The recurrence: normalised keys, one step, a chunk of steps at once, and the mask that makes a chunk causal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.ops.block import Arrays, Block, Keep, Shape, named, normal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.ops.graph import Graph

FLOOR = 1e-12


def _unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def _key_inputs(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"k": normal(rng, 1, s.T, s.H, s.N)}


def _key_weights(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"k_k": (0.5 + rng.random((s.H, s.N))).astype(np.float32)}


def _kappa(x: Arrays, w: Arrays, keep: Keep) -> list[np.ndarray]:
    k = keep(keep(x["k"]) * w["k_k"])
    norm = keep(np.sqrt(keep((k**2).sum(axis=-1, keepdims=True))))
    return [keep(k / np.maximum(norm, FLOOR))]


def _scaled(g: Graph, x: Mapping[str, str], w: Arrays) -> str:
    return g("Mul", x["k"], g.const(w["k_k"]))


def reduce_l2(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """What torch exports for ``F.normalize``: ReduceL2, Clip, Expand, Div."""
    k = _scaled(g, x, w)
    norm = g("Clip", g("ReduceL2", k, axes=[-1], keepdims=1), g.const(FLOOR))
    return [g("Div", k, g("Expand", norm, g.ints(1, s.T, s.H, s.N)))]


def reduce_l2_plain(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """``k / k.norm(dim=-1, keepdim=True)``, no floor."""
    k = _scaled(g, x, w)
    return [g("Div", k, g("ReduceL2", k, axes=[-1], keepdims=1))]


def lp_normalization(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """The operator."""
    return [g("LpNormalization", _scaled(g, x, w), axis=-1, p=2)]


def sqrt_sum(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """Squares, sum, root, Max, Div."""
    k = _scaled(g, x, w)
    norm = g("Sqrt", g.sum(g("Mul", k, k), -1))
    return [g("Div", k, g("Max", norm, g.const(FLOOR)))]


def reciprocal_root(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """``k * rsqrt(sum + floor)``."""
    k = _scaled(g, x, w)
    root = g("Sqrt", g("Add", g.sum(g("Pow", k, g.const(2.0)), -1), g.const(FLOOR)))
    return [g("Mul", k, g("Reciprocal", root))]


def power(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """``k * sum ** -0.5``."""
    k = _scaled(g, x, w)
    return [g("Mul", k, g("Pow", g.sum(g("Mul", k, k), -1), g.const(-0.5)))]


def dot(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """The sum of squares as a row times a column."""
    k = _scaled(g, x, w)
    square = g("MatMul", g.reshape(k, s.T, s.H, 1, s.N), g.reshape(k, s.T, s.H, s.N, 1))
    return [g("Div", k, g("Sqrt", g.reshape(square, 1, s.T, s.H, 1)))]


def sum_square(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """ReduceSumSquare."""
    k = _scaled(g, x, w)
    return [g("Div", k, g("Sqrt", g("ReduceSumSquare", k, axes=[-1], keepdims=1)))]


KEY_NORM = Block(
    name="key_norm",
    inputs=_key_inputs,
    weights=_key_weights,
    formula=_kappa,
    idioms=named(reduce_l2, reduce_l2_plain, lp_normalization, sqrt_sum, reciprocal_root, power, dot, sum_square),
)


def _step_inputs(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    state = normal(rng, s.H, s.N, s.N, scale=0.3)
    r, k, v = (normal(rng, s.H, s.N, scale=0.5) for _ in range(3))
    kappa = _unit(normal(rng, s.H, s.N)).astype(np.float32)
    a = rng.random((s.H, s.N), np.float32)
    w = (0.55 + 0.45 * rng.random((s.H, s.N))).astype(np.float32)
    return {"state": state, "r": r, "w": w, "k": k, "v": v, "kappa": kappa, "a": a}


def _step(x: Arrays, _: Arrays, keep: Keep) -> list[np.ndarray]:
    x = {name: keep(array) for name, array in x.items()}
    removed = keep(np.einsum("hij,hj->hi", x["state"], x["kappa"]))
    state = keep(x["state"] * x["w"][:, None, :])
    state = keep(state - keep(removed[:, :, None] * keep(x["kappa"] * x["a"])[:, None, :]))
    state = keep(state + keep(x["v"][:, :, None] * x["k"][:, None, :]))
    return [keep(np.einsum("hij,hj->hi", state, x["r"])), state]


def step_matmul(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """Products of rows and columns."""

    def row(name: str) -> str:
        return g.reshape(x[name], s.H, 1, s.N)

    def column(name: str) -> str:
        return g.reshape(x[name], s.H, s.N, 1)

    removed = g("MatMul", x["state"], column("kappa"))
    removal = g("MatMul", removed, g("Mul", row("kappa"), row("a")))
    written = g("MatMul", column("v"), row("k"))
    state = g("Add", g("Sub", g("Mul", x["state"], row("w")), removal), written)
    return [g.reshape(g("MatMul", state, column("r")), s.H, s.N), state]


def step_broadcast(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """Broadcasts and sums alone."""

    def row(name: str) -> str:
        return g("Unsqueeze", x[name], g.ints(1))

    def column(name: str) -> str:
        return g("Unsqueeze", x[name], g.ints(2))

    removed = g.sum(g("Mul", x["state"], row("kappa")), 2)
    removal = g("Mul", removed, g("Mul", row("kappa"), row("a")))
    state = g("Add", g("Sub", g("Mul", x["state"], row("w")), removal), g("Mul", column("v"), row("k")))
    return [g.sum(g("Mul", state, row("r")), 2, keep=False), state]


def step_removal_matrix(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """``S w + S (a b^T) + v k^T``, with the matrix written out: the original's own form, of rank 4."""

    def row(name: str) -> str:
        return g.reshape(x[name], 1, s.H, 1, s.N)

    def column(name: str) -> str:
        return g.reshape(x[name], 1, s.H, s.N, 1)

    state = g.reshape(x["state"], 1, s.H, s.N, s.N)
    ab = g("MatMul", g("Neg", column("kappa")), g("Mul", row("kappa"), row("a")))
    vk = g("MatMul", column("v"), row("k"))
    state = g("Add", g("Add", g("Mul", state, row("w")), g("MatMul", state, ab)), vk)
    y = g("MatMul", state, column("r"))
    return [g.reshape(y, s.H, s.N), g.reshape(state, s.H, s.N, s.N)]


def step_einsum(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """Einsum for all four products."""
    removed = g("Einsum", x["state"], x["kappa"], equation="hij,hj->hi")
    removal = g("Einsum", removed, g("Mul", x["kappa"], x["a"]), equation="hi,hj->hij")
    written = g("Einsum", x["v"], x["k"], equation="hi,hj->hij")
    state = g("Add", g("Sub", g("Mul", x["state"], g("Unsqueeze", x["w"], g.ints(1))), removal), written)
    return [g("Einsum", state, x["r"], equation="hij,hj->hi"), state]


def step_transposed(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """The state as [key, value] inside, as tuned states and some ports have it."""

    def row(name: str) -> str:
        return g.reshape(x[name], s.H, 1, s.N)

    def column(name: str) -> str:
        return g.reshape(x[name], s.H, s.N, 1)

    state = g("Transpose", x["state"], perm=[0, 2, 1])
    removed = g("MatMul", row("kappa"), state)
    removal = g("MatMul", g("Mul", column("kappa"), column("a")), removed)
    state = g("Sub", g("Mul", state, column("w")), removal)
    state = g("Add", state, g("MatMul", column("k"), row("v")))
    y = g("MatMul", row("r"), state)
    return [g.reshape(y, s.H, s.N), g("Transpose", state, perm=[0, 2, 1])]


WKV_STEP = Block(
    name="wkv_step",
    inputs=_step_inputs,
    formula=_step,
    idioms=named(step_matmul, step_broadcast, step_removal_matrix, step_einsum, step_transposed),
)


def _mask_inputs(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"a": normal(rng, s.H, s.T, s.N, scale=0.3), "b": normal(rng, s.H, s.T, s.N, scale=0.3)}


def _below(x: Arrays, _: Arrays, keep: Keep) -> list[np.ndarray]:
    return [np.tril(keep(keep(x["a"]) @ keep(x["b"]).swapaxes(1, 2)), -1)]


def _product(g: Graph, x: Mapping[str, str]) -> str:
    return g("MatMul", x["a"], g("Transpose", x["b"], perm=[0, 2, 1]))


def mask_mul(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """Times ones and zeros."""
    return [g("Mul", _product(g, x), g.const(np.tril(np.ones((s.T, s.T)), -1)))]


def mask_where(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """Where with a constant condition: masked_fill."""
    above = np.triu(np.ones((s.T, s.T), bool))
    return [g("Where", g.const(above), g.const(0.0), _product(g, x))]


def mask_trilu(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """``tril(-1)``, as torch exports it."""
    return [g("Trilu", _product(g, x), g.const(np.array(-1, np.int64)), upper=0)]


def mask_trilu_upper(g: Graph, x: Mapping[str, str], _: Arrays, __: Shape) -> list[str]:
    """The product less its ``triu(0)``."""
    product = _product(g, x)
    return [g("Sub", product, g("Trilu", product, g.const(np.array(0, np.int64)), upper=1))]


def mask_range(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """The mask made of a comparison of positions inside the graph."""
    rows, columns = g.const(np.arange(s.T, dtype=np.float32)[:, None]), g.const(np.arange(s.T, dtype=np.float32))
    mask = g("Cast", g("Greater", rows, columns), to=1)
    return [g("Mul", _product(g, x), mask)]


CAUSAL_MASK = Block(
    name="causal_mask",
    inputs=_mask_inputs,
    formula=_below,
    idioms=named(mask_mul, mask_where, mask_trilu, mask_trilu_upper, mask_range),
    tokens=2,
)


def _chunk_inputs(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    r, k, v = (normal(rng, s.T, s.H, s.N, scale=0.5) for _ in range(3))
    log_w = (-0.01 - 0.3 * rng.random((s.T, s.H, s.N))).astype(np.float32)
    kappa = _unit(normal(rng, s.T, s.H, s.N)).astype(np.float32)
    a = rng.random((s.T, s.H, s.N), np.float32)
    state = normal(rng, s.H, s.N, s.N, scale=0.3)
    return {"state": state, "r": r, "log_w": log_w, "k": k, "v": v, "kappa": kappa, "a": a}


def _chunk(x: Arrays, none: Arrays, keep: Keep) -> list[np.ndarray]:
    state, rows = x["state"], []
    for t in range(len(x["r"])):
        now = {name: x[name][t] for name in ("r", "k", "v", "kappa", "a")}
        y, state = _step(now | {"w": np.exp(x["log_w"][t]), "state": state}, none, keep)
        rows.append(y)
    return [np.stack(rows), state]


def _chunk_parallel(g: Graph, x: Mapping[str, str], s: Shape, *, summed: str, masked: str) -> list[str]:
    """The matrix form of docs/compiler.md, on [H, T, N]; *summed* and *masked* name the idioms of its parts."""

    def heads(name: str) -> str:
        return g("Transpose", x[name], perm=[1, 0, 2])

    def turned(name: str) -> str:
        return g("Transpose", name, perm=[0, 2, 1])

    def below(product: str, k: int) -> str:
        if masked == "mul":
            return g("Mul", product, g.const(np.tril(np.ones((s.T, s.T)), k)))
        if masked == "where":
            return g("Where", g.const(np.tril(np.ones((s.T, s.T), bool), k)), product, g.const(0.0))
        return g("Trilu", product, g.const(np.array(k, np.int64)), upper=0)

    log_w = heads("log_w")
    if summed == "cumsum":
        until = g("CumSum", log_w, g.const(np.array(1, np.int64)))
    else:
        until = g("MatMul", g.const(np.tril(np.ones((1, s.T, s.T)))), log_w)
    grown, kappa = g("Exp", g("Neg", until)), heads("kappa")
    A = g("Neg", g("Mul", kappa, g("Exp", g("Sub", until, log_w))))
    B = g("Mul", g("Mul", kappa, heads("a")), grown)
    K, R, v = g("Mul", heads("k"), grown), g("Mul", heads("r"), g("Exp", until)), heads("v")
    power = below(g("MatMul", A, turned(B)), -1)
    inverse = g("Add", power, g.const(np.eye(s.T)[None]))
    for _ in range((s.T - 1).bit_length() - 1):
        power = g("MatMul", power, power)
        inverse = g("Add", inverse, g("MatMul", inverse, power))
    start = turned(x["state"])
    right = g("Add", g("MatMul", A, start), g("MatMul", below(g("MatMul", A, turned(K)), -1), v))
    U = g("MatMul", inverse, right)
    y = g("Add", g("MatMul", R, start), g("MatMul", below(g("MatMul", R, turned(B)), 0), U))
    y = g("Add", y, g("MatMul", below(g("MatMul", R, turned(K)), 0), v))
    state = g("Add", x["state"], g("Add", g("MatMul", turned(U), B), g("MatMul", turned(v), K)))
    state = g("Mul", state, g("Exp", g.slice(until, s.T - 1, s.T, 1)))
    return [g("Transpose", y, perm=[1, 0, 2]), state]


def chunk_mask(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """Chunk-parallel: sums over time and masks by constants."""
    return _chunk_parallel(g, x, s, summed="matmul", masked="mul")


def chunk_where(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """With CumSum and Where."""
    return _chunk_parallel(g, x, s, summed="cumsum", masked="where")


def chunk_trilu(g: Graph, x: Mapping[str, str], _: Arrays, s: Shape) -> list[str]:
    """With CumSum and Trilu: what torch exports for reference code."""
    return _chunk_parallel(g, x, s, summed="cumsum", masked="trilu")


def chunk_unrolled(g: Graph, x: Mapping[str, str], none: Arrays, s: Shape) -> list[str]:
    """One step after the other."""
    state, rows = x["state"], []
    for t in range(s.T):
        now = {n: g.reshape(g.slice(x[n], t, t + 1, 0), s.H, s.N) for n in ("r", "log_w", "k", "v", "kappa", "a")}
        y, state = step_matmul(g, now | {"w": g("Exp", now["log_w"]), "state": state}, none, s)
        rows.append(g.reshape(y, 1, s.H, s.N))
    return [g("Concat", *rows, axis=0), state]


WKV_CHUNK = Block(
    name="wkv_chunk",
    inputs=_chunk_inputs,
    formula=_chunk,
    idioms=named(chunk_mask, chunk_where, chunk_trilu, chunk_unrolled),
    tokens=2,
)
