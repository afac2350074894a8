"""Layer norm over all channels, and group norm over those of each head, both with weight and bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.ops.block import Arrays, Block, Keep, Shape, named, normal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.ops.graph import Graph

LAYER_EPS = 1e-5
GROUP_EPS = 64e-5


def _inputs(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": normal(rng, 1, s.T, s.C) + np.float32(0.5)}


def _weights(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"weight": 1 + normal(rng, s.C, scale=0.3), "bias": normal(rng, s.C, scale=0.3)}


def _normalised(x: np.ndarray, eps: float, keep: Keep) -> np.ndarray:
    x = keep(x)
    centred = keep(x - keep(x.mean(axis=-1, keepdims=True)))
    variance = keep((centred**2).mean(axis=-1, keepdims=True))
    return keep(centred / keep(np.sqrt(variance + eps)))


def _layer(x: Arrays, w: Arrays, keep: Keep) -> list[np.ndarray]:
    return [keep(keep(_normalised(x["x"], LAYER_EPS, keep) * w["weight"]) + w["bias"])]


def _mean(g: Graph, x: str) -> str:
    return g("ReduceMean", x, axes=[-1], keepdims=1)


def _affine(g: Graph, x: str, w: Arrays) -> str:
    return g("Add", g("Mul", x, g.const(w["weight"])), g.const(w["bias"]))


def _reduced(g: Graph, x: str, eps: float) -> str:
    centred = g("Sub", x, _mean(g, x))
    variance = _mean(g, g("Mul", centred, centred))
    return g("Div", centred, g("Sqrt", g("Add", variance, g.const(eps))))


def layer_normalization(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """The operator, with its affine inside."""
    scale, bias = g.const(w["weight"]), g.const(w["bias"])
    return [g("LayerNormalization", x["x"], scale, bias, axis=-1, epsilon=LAYER_EPS)]


def layer_affine_outside(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """The operator with a scale of ones, and no bias; the affine behind it."""
    return [_affine(g, g("LayerNormalization", x["x"], g.const(np.ones(s.C)), axis=-1, epsilon=LAYER_EPS), w)]


def layer_reduce(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """Mean, difference, mean of squares, root, quotient: opsets before 17."""
    return [_affine(g, _reduced(g, x["x"], LAYER_EPS), w)]


def layer_pow(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """The same with Pow for the square, and Reciprocal and Mul for the quotient."""
    centred = g("Sub", x["x"], _mean(g, x["x"]))
    variance = _mean(g, g("Pow", centred, g.const(2.0)))
    inverse = g("Reciprocal", g("Sqrt", g("Add", variance, g.const(LAYER_EPS))))
    return [_affine(g, g("Mul", centred, inverse), w)]


def layer_moments(g: Graph, x: Mapping[str, str], w: Arrays, _: Shape) -> list[str]:
    """Variance as the mean square less the square of the mean."""
    mean = _mean(g, x["x"])
    variance = g("Sub", _mean(g, g("Mul", x["x"], x["x"])), g("Mul", mean, mean))
    root = g("Sqrt", g("Add", variance, g.const(LAYER_EPS)))
    return [_affine(g, g("Div", g("Sub", x["x"], mean), root), w)]


def layer_instance(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """Tokens as the channels of an InstanceNormalization, whose affine does nothing."""
    ones, zeros = g.const(np.ones(s.T)), g.const(np.zeros(s.T))
    return [_affine(g, g("InstanceNormalization", x["x"], ones, zeros, epsilon=LAYER_EPS), w)]


def layer_matmul(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """Means as products with a column of 1/C."""
    column = g.const(np.full((s.C, 1), 1 / s.C))
    centred = g("Sub", x["x"], g("MatMul", x["x"], column))
    variance = g("MatMul", g("Mul", centred, centred), column)
    return [_affine(g, g("Div", centred, g("Sqrt", g("Add", variance, g.const(LAYER_EPS)))), w)]


LAYER_NORM = Block(
    name="layer_norm",
    inputs=_inputs,
    weights=_weights,
    formula=_layer,
    idioms=named(
        layer_normalization, layer_affine_outside, layer_reduce, layer_pow, layer_moments, layer_instance, layer_matmul
    ),
)


def _group_inputs(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": normal(rng, 1, s.T, s.C, scale=0.3) + np.float32(0.1)}


def _group(x: Arrays, w: Arrays, keep: Keep) -> list[np.ndarray]:
    heads = x["x"].reshape(*x["x"].shape[:-1], w["heads"].size, -1)
    normal_ = _normalised(heads, GROUP_EPS, keep).reshape(x["x"].shape)
    return [keep(keep(normal_ * w["weight"]) + w["bias"])]


def _group_weights(s: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return _weights(s, rng) | {"heads": np.ones(s.H, np.float32)}


def instance_norm(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """Tokens as the batch, heads as channels, affine outside: what torch exports for GroupNorm."""
    ones, zeros = g.const(np.ones(s.H)), g.const(np.zeros(s.H))
    heads = g("InstanceNormalization", g.reshape(x["x"], s.T, s.H, s.N), ones, zeros, epsilon=GROUP_EPS)
    return [g.reshape(_affine(g, g.reshape(heads, s.T, s.C), w), 1, s.T, s.C)]


def instance_norm_flat(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """All heads of all tokens as channels of one batch."""
    ones, zeros = g.const(np.ones(s.T * s.H)), g.const(np.zeros(s.T * s.H))
    heads = g("InstanceNormalization", g.reshape(x["x"], 1, s.T * s.H, s.N), ones, zeros, epsilon=GROUP_EPS)
    return [_affine(g, g.reshape(heads, 1, s.T, s.C), w)]


def instance_norm_4d(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """With two axes behind the channels, one of them of length 1."""
    ones, zeros = g.const(np.ones(s.H)), g.const(np.zeros(s.H))
    heads = g("InstanceNormalization", g.reshape(x["x"], s.T, s.H, s.N, 1), ones, zeros, epsilon=GROUP_EPS)
    return [_affine(g, g.reshape(heads, 1, s.T, s.C), w)]


def layer_norm_last(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """LayerNormalization over the last axis of [1, T, H, N]; the affine outside, as heads differ in it."""
    heads = g.reshape(x["x"], 1, s.T, s.H, s.N)
    normed = g("LayerNormalization", heads, g.const(np.ones(s.N)), axis=-1, epsilon=GROUP_EPS)
    return [_affine(g, g.reshape(normed, 1, s.T, s.C), w)]


def layer_norm_heads(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """The same with a bias of zeros inside, and the affine on [H, N] before the heads are joined again."""
    heads = g.reshape(x["x"], 1, s.T, s.H, s.N)
    ones, zeros = g.const(np.ones(s.N)), g.const(np.zeros(s.N))
    normed = g("LayerNormalization", heads, ones, zeros, axis=-1, epsilon=GROUP_EPS)
    scaled = g("Mul", normed, g.const(w["weight"].reshape(s.H, s.N)))
    return [g.reshape(g("Add", scaled, g.const(w["bias"].reshape(s.H, s.N))), 1, s.T, s.C)]


def reduce_ops(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """ReduceMean and arithmetic."""
    normed = _reduced(g, g.reshape(x["x"], 1, s.T, s.H, s.N), GROUP_EPS)
    return [_affine(g, g.reshape(normed, 1, s.T, s.C), w)]


def heads_first(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """Heads before tokens, with a transpose on each side."""
    heads = g("Transpose", g.reshape(x["x"], 1, s.T, s.H, s.N), perm=[0, 2, 1, 3])
    normed = g("Transpose", _reduced(g, heads, GROUP_EPS), perm=[0, 2, 1, 3])
    return [_affine(g, g.reshape(normed, 1, s.T, s.C), w)]


def group_normalization(g: Graph, x: Mapping[str, str], w: Arrays, s: Shape) -> list[str]:
    """The operator of opset 18, which has a scale for each group."""
    ones, zeros = g.const(np.ones(s.H)), g.const(np.zeros(s.H))
    rows = g.reshape(x["x"], s.T, s.C, 1)
    normed = g("GroupNormalization", rows, ones, zeros, epsilon=GROUP_EPS, num_groups=s.H)
    return [_affine(g, g.reshape(normed, 1, s.T, s.C), w)]


GROUP_NORM = Block(
    name="group_norm",
    inputs=_group_inputs,
    weights=_group_weights,
    formula=_group,
    idioms=named(
        instance_norm,
        instance_norm_flat,
        instance_norm_4d,
        layer_norm_last,
        layer_norm_heads,
        reduce_ops,
        heads_first,
        group_normalization,
    ),
    opsets={"group_normalization": 18},
)
