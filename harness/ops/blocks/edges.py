"""The two ends of the model: rows of the embedding, and the head's product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.ops.block import Arrays, Block, Keep, Shape, named, normal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.ops.graph import Graph

V = 320


def _tokens(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"token": rng.integers(0, V, (1, s.T)).astype(np.int32)}


def _table(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"table": normal(rng, V, s.C)}


def _rows(x: Arrays, w: Arrays, keep: Keep) -> list[np.ndarray]:
    return [keep(keep(w["table"])[x["token"].astype(int)])]


def gather(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """By ids of rank 2."""
    return [g("Gather", g.const(w["table"]), x["token"], axis=0)]


def gather_flat(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """By ids of rank 1."""
    rows = g("Gather", g.const(w["table"]), g.reshape(x["token"], s.T), axis=0)
    return [g.reshape(rows, 1, s.T, s.C)]


def gather_columns(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """From a transposed table, along its last axis."""
    columns = g("Gather", g.const(w["table"].T), g.reshape(x["token"], s.T), axis=1)
    return [g("Unsqueeze", g("Transpose", columns, perm=[1, 0]), g.ints(0))]


def gather_int64(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """Ids cast to int64 first, as torch has them."""
    return [g("Gather", g.const(w["table"]), g("Cast", x["token"], to=7), axis=0)]


def one_hot(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """Compared with all ids, and multiplied with the table."""
    hot = g("Equal", g("Unsqueeze", x["token"], g.ints(2)), g.const(np.arange(V, dtype=np.int32)))
    return [g("MatMul", g("Cast", hot, to=1), g.const(w["table"]))]


def gather_elements(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """By an index for each element."""
    ids = g("Expand", g.reshape(x["token"], s.T, 1), g.ints(s.T, s.C))
    return [g("Unsqueeze", g("GatherElements", g.const(w["table"]), ids, axis=0), g.ints(0))]


def gather_nd(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """With a last axis of indices, of length 1."""
    ids = g("Cast", g("Unsqueeze", x["token"], g.ints(2)), to=7)
    return [g("GatherND", g.const(w["table"]), ids)]


EMBEDDING = Block(
    name="embedding",
    inputs=_tokens,
    weights=_table,
    formula=_rows,
    idioms=named(gather, gather_flat, gather_columns, gather_int64, one_hot, gather_elements, gather_nd),
)


def _hidden(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": normal(rng, 1, s.T, s.C)}


def _head_weights(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"head": normal(rng, s.C, V) / np.float32(np.sqrt(s.C))}


def _logits(x: Arrays, w: Arrays, keep: Keep) -> list[np.ndarray]:
    return [keep(keep(x["x"]) @ w["head"])]


def matmul(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """A product with [in, out]."""
    return [g("MatMul", x["x"], g.const(w["head"]))]


def gemm(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """Gemm with [out, in]."""
    return [g.reshape(g("Gemm", g.reshape(x["x"], s.T, s.C), g.const(w["head"].T), transB=1), 1, s.T, V)]


def transposed(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """A Transpose node on [out, in]."""
    return [g("MatMul", x["x"], g("Transpose", g.const(w["head"].T), perm=[1, 0]))]


def halves(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """Two products, joined: how large vocabularies are cut."""
    parts = [g("MatMul", x["x"], g.const(part)) for part in np.split(w["head"], 2, axis=1)]
    return [g("Concat", *parts, axis=2)]


def conv(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """A convolution of length 1 over [1, C, 1, T]."""
    columns = g.reshape(g("Transpose", x["x"], perm=[0, 2, 1]), 1, s.C, 1, s.T)
    y = g("Conv", columns, g.const(w["head"].T[:, :, None, None]), kernel_shape=[1, 1])
    return [g("Transpose", g.reshape(y, 1, V, s.T), perm=[0, 2, 1])]


def weights_left(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """Weights on the left of columns: ``W x`` as formulas have it."""
    y = g("MatMul", g.const(w["head"].T), g("Transpose", x["x"], perm=[0, 2, 1]))
    return [g("Transpose", y, perm=[0, 2, 1])]


def einsum(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """``einsum('tc,cv->tv')``."""
    y = g("Einsum", g.reshape(x["x"], s.T, s.C), g.const(w["head"]), equation="tc,cv->tv")
    return [g.reshape(y, 1, s.T, V)]


HEAD = Block(
    name="head",
    inputs=_hidden,
    weights=_head_weights,
    matrices=("head",),
    formula=_logits,
    idioms=named(matmul, gemm, transposed, halves, conv, weights_left, einsum),
)
