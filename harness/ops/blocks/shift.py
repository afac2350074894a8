"""Token shift: ``x + (before - x) * mix``, where ``before`` is the token before, at the first position the state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.ops.block import Arrays, Block, Keep, Shape, named, normal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.ops.graph import Graph


def _inputs(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": normal(rng, 1, s.T, s.C), "state": normal(rng, 1, 1, s.C)}


def _weights(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"mix": rng.random((1, 1, s.C), np.float32)}


def _formula(x: Arrays, w: Arrays, keep: Keep) -> list[np.ndarray]:
    before = np.concatenate([x["state"], x["x"][:, :-1]], axis=1)
    return [keep(x["x"] + keep(keep(before - x["x"]) * w["mix"]))]


def _mixed(g: Graph, x: str, before: str, w: Arrays) -> list[str]:
    return [g("Add", x, g("Mul", g("Sub", before, x), g.const(w["mix"])))]


def slice_concat(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """``torch.cat([state, x[:, :-1]], 1)``: what most exporters give."""
    before = g("Concat", x["state"], g.slice(x["x"], 0, s.T - 1, 1), axis=1) if s.T > 1 else x["state"]
    return _mixed(g, x["x"], before, w)


def lerp(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """``x (1 - mix) + before mix``, as RWKV-4 to 6 wrote it."""
    before = g("Slice", g("Concat", x["state"], x["x"], axis=1), g.ints(0), g.ints(s.T), g.ints(1))
    ones = g.const(1 - w["mix"])
    return [g("Add", g("Mul", x["x"], ones), g("Mul", before, g.const(w["mix"])))]


def gather(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """Rows of state and x by constant indices."""
    both = g("Concat", x["state"], x["x"], axis=1)
    return _mixed(g, x["x"], g("Gather", both, g.ints(*range(s.T)), axis=1), w)


def pad(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """``nn.ZeroPad2d((0, 0, 1, -1))``, and the state added to the first row."""
    shifted = g("Pad", x["x"], g.ints(0, 1, 0, 0, -1, 0))
    first = g("Pad", x["state"], g.ints(0, 0, 0, 0, s.T - 1, 0))
    return _mixed(g, x["x"], g("Add", shifted, first), w)


def pad_slice(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """The same without a negative pad: one row more, then all but the last."""
    shifted = g.slice(g("Pad", x["x"], g.ints(0, 1, 0, 0, 0, 0)), 0, s.T, 1)
    first = g("Pad", x["state"], g.ints(0, 0, 0, 0, s.T - 1, 0))
    return _mixed(g, x["x"], g("Add", shifted, first), w)


def matmul(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """By a constant matrix that has its ones below the diagonal."""
    both = g("Concat", x["state"], x["x"], axis=1)
    return _mixed(g, x["x"], g("MatMul", g.const(np.eye(s.T, s.T + 1)[None]), both), w)


def split(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """Row by row, then joined: what an unrolled loop over time gives."""
    rows = g.several("Split", s.T, x["x"], g.ints(*[1] * s.T), axis=1) if s.T > 1 else [x["x"]]
    before = [x["state"], *rows[:-1]]
    mixed = [_mixed(g, now, then, w)[0] for now, then in zip(rows, before, strict=True)]
    return [g("Concat", *mixed, axis=1)] if s.T > 1 else mixed


def expand(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """The mix spread out to the size of x beforehand: ``mix.expand_as(x)``."""
    before = slice_before(g, x, s)
    mix = g("Expand", g.const(w["mix"]), g.ints(1, s.T, s.C))
    return [g("Add", x["x"], g("Mul", g("Sub", before, x["x"]), mix))]


def stacked(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """Six mixes at once on an axis of their own, of which one is taken."""
    before = slice_before(g, x, s)
    delta = g("Unsqueeze", g("Sub", before, x["x"]), g.ints(0))
    six = np.stack([w["mix"] * (i + 1) / 3 for i in range(6)])
    mixed = g("Add", g("Unsqueeze", x["x"], g.ints(0)), g("Mul", delta, g.const(six)))
    return [g("Squeeze", g("Gather", mixed, g.ints(2), axis=0), g.ints(0))]


def slice_before(g: Graph, x: Mapping[str, str], s: Shape) -> str:
    """The tokens before, by Slice and Concat."""
    return g("Concat", x["state"], g.slice(x["x"], 0, s.T - 1, 1), axis=1) if s.T > 1 else x["state"]


TOKEN_SHIFT = Block(
    name="token_shift",
    inputs=_inputs,
    weights=_weights,
    formula=_formula,
    idioms=named(slice_concat, lerp, gather, pad, pad_slice, matmul, split, expand, stacked),
)
