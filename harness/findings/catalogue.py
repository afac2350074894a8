"""The reproducers of ``docs/findings/``, by name: each builds the smallest graph that shows its fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from compile.spec import Quantization
from harness.findings.reproducer import Reproducer
from harness.ops.graph import Graph
from harness.ops.precision import with_codes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Normally distributed float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _made(
    name: str,
    inputs: Mapping[str, np.ndarray],
    build: Callable[[Graph], str],
    expected: np.ndarray,
    *,
    quantize: str = "F32",
    flags: tuple[str, ...] = (),
    opset: int = 17,
    wrong_from: float = 1e-3,
    top_expected: np.ndarray | None = None,
) -> Reproducer:
    graph = Graph(inputs, opset)
    model = graph.model({build(graph): expected.shape}, name)
    return Reproducer(
        name=name,
        model=model,
        inputs=list(inputs.values()),
        expected=[np.asarray(expected, np.float64)],
        top_expected=None if top_expected is None else [np.asarray(top_expected, np.float64)],
        quantize=quantize,
        flags=flags,
        wrong_from=wrong_from,
    )


def _scalar(value: int) -> np.ndarray:
    return np.array(value, np.int64)


def relu_after_coded_matmul(quantize: str = "W8BF16") -> Reproducer:
    """``relu(x W)`` with W in 8 bits and arithmetic in BF16."""
    x, w = numbers(1, 4, 64), numbers(64, 64, seed=1) / np.float32(8)
    kept = with_codes({"w": w}, ("w",), Quantization(quantize))["w"]
    return _made(
        f"relu_dropped_{quantize.lower()}",
        {"x": x},
        lambda g: g("Relu", g("MatMul", "x", g.const(w))),
        np.maximum(x.astype(np.float64) @ kept, 0),
        top_expected=np.maximum(x.astype(np.float64) @ w, 0),
        quantize=quantize,
    )


def trilu_diagonal() -> Reproducer:
    """``tril(x, -1)``."""
    x = numbers(1, 2, 8, 8)
    return _made("trilu_diagonal", {"x": x}, lambda g: g("Trilu", "x", g.const(_scalar(-1)), upper=0), np.tril(x, -1))


def trilu_behind_matmul() -> Reproducer:
    """``tril(a b)``, the diagonal as it is: a causal mask on a product."""
    a, b = numbers(2, 16, 64), numbers(2, 64, 16, seed=1)
    return _made(
        "trilu_behind_matmul",
        {"a": a, "b": b},
        lambda g: g("Trilu", g("MatMul", "a", "b"), g.const(_scalar(0)), upper=0),
        np.tril(a.astype(np.float64) @ b),
        quantize="F16",
    )


def ids_compared_in_bf16() -> Reproducer:
    """Ids compared with all ids: rows of ones and zeros, of which each should have a single one."""
    token, ids = np.array([[255, 257, 300, 319]], np.int32), np.arange(320, dtype=np.int32)
    return _made(
        "ids_compared_in_bf16",
        {"token": token},
        lambda g: g("Cast", g("Equal", g("Unsqueeze", "token", g.ints(2)), g.const(ids)), to=TensorProto.FLOAT),
        (token[:, :, None] == ids).astype(np.float64),
        quantize="BF16",
    )


def cumsum_exclusive() -> Reproducer:
    """The sum of what lies before."""
    x = numbers(1, 2, 8, 16)
    return _made(
        "cumsum_exclusive",
        {"x": x},
        lambda g: g("CumSum", "x", g.const(_scalar(2)), exclusive=1),
        np.cumsum(x, axis=2, dtype=np.float64) - x,
    )


def cumsum_reverse() -> Reproducer:
    """The sum from the end."""
    x = numbers(1, 2, 8, 16)
    return _made(
        "cumsum_reverse",
        {"x": x},
        lambda g: g("CumSum", "x", g.const(_scalar(2)), reverse=1),
        np.cumsum(x[:, :, ::-1], axis=2, dtype=np.float64)[:, :, ::-1],
    )


def cumsum_rank5() -> Reproducer:
    """A plain CumSum of rank 5."""
    x = numbers(2, 3, 4, 5, 8)
    return _made(
        "cumsum_rank5",
        {"x": x},
        lambda g: g("CumSum", "x", g.const(_scalar(2))),
        np.cumsum(x, axis=2, dtype=np.float64),
    )


def expand_into_both_inputs() -> Reproducer:
    """``y = expand(x); y + y``."""
    x = numbers(1, 1, 16)

    def build(g: Graph) -> str:
        y = g("Expand", "x", g.ints(1, 4, 16))
        return g("Add", y, y)

    return _made("expand_add", {"x": x}, build, 2 * np.repeat(x, 4, axis=1).astype(np.float64))


def group_does_not_divide() -> Reproducer:
    """A matrix of 200 inputs with groups of 64: what W4F16 promises is an error of some per cent."""
    x, w = numbers(1, 4, 200), numbers(200, 64, seed=1)
    levels = 15
    padded = np.pad(w, ((0, 56), (0, 0))).reshape(4, 64, 64)
    low, high = np.minimum(padded.min(1, keepdims=True), 0), np.maximum(padded.max(1, keepdims=True), 0)
    step = (high - low) / levels
    kept = (np.round(padded / step) * step).reshape(256, 64)[:200]
    return _made(
        "group_does_not_divide",
        {"x": x},
        lambda g: g("MatMul", "x", g.const(w)),
        x.astype(np.float64) @ kept,
        top_expected=x.astype(np.float64) @ w,
        quantize="W4F16",
    )


def group_of_one_sign() -> Reproducer:
    """A matrix of positive weights in W8F16: the zero point of an asymmetric code would have to be negative."""
    x, w = numbers(1, 4, 128), np.abs(numbers(128, 64, seed=1)) + np.float32(0.5)
    kept = with_codes({"w": w}, ("w",), Quantization.W8F16)["w"]
    wide = x.astype(np.float64)
    return _made(
        "group_of_one_sign",
        {"x": x},
        lambda g: g("MatMul", "x", g.const(w)),
        wide @ kept,
        top_expected=wide @ w,
        quantize="W8F16",
    )


def _uncoded(name: str, w: np.ndarray, build: Callable[[Graph], str]) -> Reproducer:
    """A product with w ``[in, out]`` in W4F16: what comes out should be that of its codes."""
    x = numbers(1, 4, len(w))
    kept = with_codes({"w": w}, ("w",), Quantization.W4F16)["w"]
    wide = x.astype(np.float64)
    return _made(name, {"x": x}, build, wide @ kept, top_expected=wide @ w, quantize="W4F16")


def columns_stay_f16() -> Reproducer:
    """160 outputs: two blocks of 64 and 32 more."""
    w = numbers(128, 160, seed=1)
    return _uncoded("columns_stay_f16", w, lambda g: g("MatMul", "x", g.const(w)))


def batched_weights_stay_f16() -> Reproducer:
    """A constant of rank 3, as stacked weights have it; the first product is taken."""
    w = numbers(128, 64, seed=1)

    def build(g: Graph) -> str:
        return g.slice(g("MatMul", "x", g.const(np.stack([w, -w]))), 0, 1, 0)

    return _uncoded("batched_weights_stay_f16", w, build)


def conv_weights_stay_f16() -> Reproducer:
    """The linear layer as a convolution of length 1."""
    w = numbers(128, 64, seed=1)

    def build(g: Graph) -> str:
        y = g("Conv", g("Transpose", "x", perm=[0, 2, 1]), g.const(w.T[:, :, None]), kernel_shape=[1])
        return g("Transpose", y, perm=[0, 2, 1])

    return _uncoded("conv_weights_stay_f16", w, build)


def left_weights_stay_f16() -> Reproducer:
    """The constant on the left of a product."""
    w = numbers(128, 64, seed=1)

    def build(g: Graph) -> str:
        y = g("MatMul", g.const(w.T), g("Transpose", "x", perm=[0, 2, 1]))
        return g("Transpose", y, perm=[0, 2, 1])

    return _uncoded("left_weights_stay_f16", w, build)


def matmul_rank5_broadcast() -> Reproducer:
    """A batched product of rank 5 whose batch axes broadcast."""
    a, b = numbers(1, 2, 3, 4, 8), numbers(1, 2, 1, 8, 4, seed=1)
    return _made("matmul_rank5_broadcast", {"a": a, "b": b}, lambda g: g("MatMul", "a", "b"), a.astype(np.float64) @ b)


def scatternd_reduction_none() -> Reproducer:
    """The default of ``reduction``, written out."""
    x, rows = numbers(4, 8), numbers(1, 8, seed=1)
    expected = x.copy()
    expected[1] = rows
    return _made(
        "scatternd_reduction_none",
        {"x": x, "rows": rows},
        lambda g: g("ScatterND", "x", g.const(np.array([[1]], np.int64)), "rows", reduction="none"),
        expected,
    )


def group_normalization_scale() -> Reproducer:
    """GroupNormalization of opset 18: a scale and a bias for each group."""
    x, scale, bias = numbers(2, 8, 16), np.array([2.0, 0.5], np.float32), np.array([1.0, -1.0], np.float32)
    groups = x.reshape(2, 2, -1).astype(np.float64)
    centred = groups - groups.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    expected = (normed * scale[None, :, None] + bias[None, :, None]).reshape(x.shape)
    return _made(
        "group_normalization_18",
        {"x": x},
        lambda g: g("GroupNormalization", "x", g.const(scale), g.const(bias), num_groups=2, epsilon=1e-5),
        expected,
        opset=18,
    )


def slice_two_negative_steps() -> Reproducer:
    """Two axes reversed by one Slice."""
    x = numbers(1, 4, 8)
    last = -(2**31)
    return _made(
        "slice_two_negative_steps",
        {"x": x},
        lambda g: g("Slice", "x", g.ints(-1, -1), g.ints(last, last), g.ints(1, 2), g.ints(-1, -1)),
        x[:, ::-1, ::-1].copy(),
    )


def einsum_heads() -> Reproducer:
    """``einsum('thn,hn->th')``, the bonus of RWKV-7."""
    a, b = numbers(4, 2, 8), numbers(2, 8, seed=1)
    return _made(
        "einsum_heads",
        {"a": a, "b": b},
        lambda g: g("Einsum", "a", "b", equation="thn,hn->th"),
        np.einsum("thn,hn->th", a.astype(np.float64), b),
    )


def reduce_sum_square() -> Reproducer:
    """ReduceSumSquare, which has no handler."""
    x = numbers(1, 4, 16)
    return _made(
        "reduce_sum_square",
        {"x": x},
        lambda g: g("ReduceSumSquare", "x", axes=[-1], keepdims=1),
        (x.astype(np.float64) ** 2).sum(-1, keepdims=True),
    )


def lp_normalization() -> Reproducer:
    """LpNormalization, which has no handler."""
    x = numbers(1, 4, 16)
    wide = x.astype(np.float64)
    return _made(
        "lp_normalization",
        {"x": x},
        lambda g: g("LpNormalization", "x", axis=-1, p=2),
        wide / np.linalg.norm(wide, axis=-1, keepdims=True),
    )


def cast_from_float16() -> Reproducer:
    """A float16 input cast to float32: the whole graph."""
    x = numbers(1, 4, 16).astype(np.float16)
    return _made("cast_from_float16", {"x": x}, lambda g: g("Cast", "x", to=TensorProto.FLOAT), x.astype(np.float64))


def f8e4m3_without_table() -> Reproducer:
    """F8E4M3 without a calibration table: a clear refusal would be right."""
    x, w = numbers(1, 4, 64), numbers(64, 64, seed=1)
    return _made(
        "f8e4m3_uncalibrated",
        {"x": x},
        lambda g: g("MatMul", "x", g.const(w)),
        x.astype(np.float64) @ w,
        quantize="F8E4M3",
        wrong_from=1e-2,
    )


def loop_of_additions() -> Reproducer:
    """A Loop that adds its input three times."""
    x = numbers(1, 16)
    body = helper.make_graph(
        [
            helper.make_node("Add", ["sum_in", "x"], ["sum_out"]),
            helper.make_node("Identity", ["go"], ["go_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_in", TensorProto.FLOAT, [1, 16]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, [1, 16]),
        ],
    )
    zeros = np.zeros((1, 16), np.float32)
    return _made(
        "loop",
        {"x": x},
        lambda g: g("Loop", g.const(_scalar(3)), g.const(np.ones((), bool)), g.const(zeros), body=body),
        3 * x.astype(np.float64),
    )


def dynamic_quantization_accepted() -> Reproducer:
    """INT8F16DYN is said not to be supported in deploy, and compiles all the same."""
    x, w = numbers(1, 4, 64), numbers(64, 64, seed=1)
    return _made(
        "int8f16dyn_accepted",
        {"x": x},
        lambda g: g("MatMul", "x", g.const(w)),
        x.astype(np.float64) @ w,
        quantize="INT8F16DYN",
        flags=("--tolerance", "0.9,0.9"),
    )


def dot_of_reshapes() -> Reproducer:
    """Rows times columns, both a reshape to rank 4."""
    x, y = numbers(2, 2, 64), numbers(2, 2, 64, seed=1)
    return _made(
        "dot_of_reshapes",
        {"x": x, "y": y},
        lambda g: g("MatMul", g.reshape("x", 2, 2, 1, 64), g.reshape("y", 2, 2, 64, 1)),
        x[:, :, None].astype(np.float64) @ y[..., None],
    )


def relu_hides_nan() -> Reproducer:
    """``relu(2 x)`` where one number of x is NaN."""
    x = numbers(1, 64)
    x[0, 60] = np.nan
    return _made(
        "relu_hides_nan",
        {"x": x},
        lambda g: g("Relu", g("Mul", "x", g.const(np.full((1, 64), 2, np.float32)))),
        np.where(np.isnan(x), np.nan, np.maximum(2 * x.astype(np.float64), 0)),
        quantize="F16",
    )


def all_reproducers() -> dict[str, Reproducer]:
    """Every one, by its name."""
    made: Sequence[Reproducer] = (
        relu_after_coded_matmul("W8BF16"),
        relu_after_coded_matmul("W4BF16"),
        trilu_diagonal(),
        trilu_behind_matmul(),
        ids_compared_in_bf16(),
        cumsum_exclusive(),
        cumsum_reverse(),
        cumsum_rank5(),
        expand_into_both_inputs(),
        group_does_not_divide(),
        group_of_one_sign(),
        columns_stay_f16(),
        batched_weights_stay_f16(),
        conv_weights_stay_f16(),
        left_weights_stay_f16(),
        matmul_rank5_broadcast(),
        scatternd_reduction_none(),
        group_normalization_scale(),
        slice_two_negative_steps(),
        einsum_heads(),
        reduce_sum_square(),
        lp_normalization(),
        cast_from_float16(),
        f8e4m3_without_table(),
        loop_of_additions(),
        dynamic_quantization_accepted(),
        relu_hides_nan(),
        dot_of_reshapes(),
    )
    return {one.name: one for one in made}
