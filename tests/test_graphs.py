"""The graphs in torch: equal to the naive recurrence, whatever the input; and exported under the names they promise."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.export import export
from compile.graphs.wkv import WkvChunk, WkvChunks, WkvStep
from harness.cases import VARIANTS
from reference.naive import Naive
from reference.shape import LoraRanks, ModelShape
from reference.state import State
from reference.synthetic import synthetic

SHAPE = ModelShape(
    n_layer=2, n_embd=128, head_size=64, n_ffn=256, n_vocab=50, ranks=LoraRanks(decay=8, rate=8, value=8, gate=8)
)
CHECKPOINT = synthetic(SHAPE)
ARRAYS = {name: tensor.numpy() for name, tensor in CHECKPOINT.tensors.items()}
LOWEST_LOG_DECAY = -np.exp(-0.5)


def naive_wkv(r, log_w, k, v, a, b, S):
    """The recurrence, one token and head at a time, in float64."""
    S, rows = S.clone(), []
    for t in range(r.shape[1]):
        Sa = S @ a[:, t, :, None]
        S = S * torch.exp(log_w[:, t, None]) + Sa * b[:, t, None] + v[:, t, :, None] * k[:, t, None]
        rows.append((S @ r[:, t, :, None])[..., 0])
    return torch.stack(rows, dim=1), S


def chunk_or_step(r, log_w, k, v, a, b, S):
    """The module for as many tokens."""
    if r.shape[1] == 1:
        return WkvStep(16).to(r.dtype)(r, log_w.exp(), k, v, a, b, S)
    return WkvChunks(r.shape[1], 16).to(r.dtype)(r, log_w, k, v, a, b, S)


def wkv_inputs(T, seed, decay, rate, repeated):
    """Random vectors of two heads; *decay* and *rate* in [0, 1] set how strong both are, *repeated* feeds one token."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 1 if repeated else T, 16)
    r, k, v, kappa = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    kappa = torch.nn.functional.normalize(kappa, dim=-1)
    log_w = torch.full(shape, LOWEST_LOG_DECAY * decay, dtype=torch.float64)
    inputs = [q.expand(2, T, 16) for q in (r, log_w, k, v, -kappa, kappa * rate)]
    return [*inputs, torch.randn(2, 16, 16, generator=generator, dtype=torch.float64)]


@settings(max_examples=150)
@given(
    T=st.sampled_from([1, 2, 3, 4, 7, 8, 16, 17, 32, 40, 64, 65, 100, 128]),
    seed=st.integers(0, 2**32 - 1),
    decay=st.floats(0.0, 1.0),
    rate=st.floats(0.0, 1.0),
    repeated=st.booleans(),
)
def test_wkv_is_the_recurrence(T, seed, decay, rate, repeated):
    """Steps and chunks equal the recurrence, float64 to rounding and float32 closely, on the hardest inputs too."""
    inputs = wkv_inputs(T, seed, decay, rate, repeated)
    want_y, want_S = naive_wkv(*inputs)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        y, S = chunk_or_step(*(q.to(dtype) for q in inputs))
        assert float((y - want_y).abs().max()) <= tolerance * max(1.0, float(want_y.abs().max()))
        assert float((S - want_S).abs().max()) <= tolerance * max(1.0, float(want_S.abs().max()))


def test_one_token_repeated_512_times():
    """In-context rates near 1 on one repeated token, where an inverse by a product of squares diverges in float32."""
    inputs = wkv_inputs(512, seed=1, decay=0.01, rate=0.99, repeated=True)
    want_y, want_S = naive_wkv(*inputs)
    y, S = chunk_or_step(*(q.float() for q in inputs))
    assert float((y - want_y).abs().max()) <= 1e-4 * float(want_y.abs().max())
    assert float((S - want_S).abs().max()) <= 1e-4 * float(want_S.abs().max())


def test_removed_products_that_overflow():
    """What the mask removes may be infinite in float16: it becomes 0, and what is kept stays as it is."""
    P = torch.full((1, 32, 32), float("inf"))
    bounded = WkvChunk(16, 16).bounded(P)
    assert bool(torch.isfinite(bounded).all())
    before, through = torch.tril(torch.ones(16, 16), -1), torch.tril(torch.ones(16, 16))
    kept = torch.cat([torch.cat([before, before], 1), torch.cat([through, through], 1)])
    assert torch.equal(bounded[0] == 0, kept == 0)
    r, log_w, k, v, a, b, S = wkv_inputs(16, seed=2, decay=1.0, rate=1.0, repeated=False)
    y, S = chunk_or_step(*(q.float() for q in (1e3 * r, log_w, 1e3 * k, v, a, b, S)))
    assert bool(torch.isfinite(y).all())
    assert bool(torch.isfinite(S).all())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("T", [1, 16, 32])
@pytest.mark.parametrize("start", ["zero", "random"])
def test_model_is_the_reference(variant, T, start):
    """Whole graphs, chunk after chunk, equal the naive reference in float64 and closely in float32."""
    tokens = [int(token) for token in np.random.default_rng(T).integers(0, SHAPE.n_vocab, 64)]
    zeros = State.zeros(SHAPE, torch.float64)
    state = zeros if start == "zero" else State.random(SHAPE, 1, torch.float64).to(torch.float32).to(torch.float64)
    want, want_state = Naive(CHECKPOINT).forward(tokens, state)
    graph = VARIANTS[variant](ARRAYS, T=T, every_position=True)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        graph = graph.to(dtype)
        shapes = [shape for _, shape in graph.dims.state_shapes()]
        states = [torch.tensor(a).to(dtype).reshape(s) for a, s in zip(state.arrays(), shapes, strict=True)]
        rows = []
        for cut in range(0, 64, T):
            logits, *states = graph(torch.tensor([tokens[cut : cut + T]]), *states)
            rows.append(logits[0])
        assert float((torch.cat(rows) - want).abs().max()) <= tolerance * float(want.abs().max())
        for got, wanted in zip(states, want_state.arrays(), strict=True):
            torch.testing.assert_close(
                got.reshape(wanted.shape).double(), torch.tensor(wanted).double(), rtol=0, atol=1e-4
            )


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_prefill_gives_the_last_row(variant):
    """The logits of a prefill graph are the last row of those of every position."""
    graph = variant(ARRAYS, T=16, every_position=False).float()
    states = [torch.zeros(shape) for _, shape in graph.dims.state_shapes()]
    tokens = torch.arange(16)[None]
    last, *_ = graph(tokens, *states)
    every, *_ = variant(ARRAYS, T=16, every_position=True).float()(tokens, *states)
    assert last.shape == (1, 1, SHAPE.n_vocab)
    torch.testing.assert_close(last[:, 0], every[:, -1])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("T", [1, 32])
def test_export_names(tmp_path, variant, T):
    """Quantities keep the name of layer and quantity, states and logits that of the contract, no mark is left."""
    f32 = export(VARIANTS[variant](ARRAYS, T=T, every_position=True), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    states = [f"blocks.{i}.{name}" for i in range(2) for name in ("att.shift", "att.state", "ffn.shift")]
    assert [value.name for value in graph.input] == ["token", *states]
    assert [value.name for value in graph.output] == ["logits", *(name + ".next" for name in states)]
    made = {name for node in graph.node for name in node.output}
    for i in range(2):
        for quantity in ("att.r", "att.k", "att.v", "att.rate", "att.gate", "att.kappa", "att.wkv"):
            assert f"blocks.{i}.{quantity}" in made
        assert {f"blocks.{i}.att.decay", f"blocks.{i}.att.log_w"} & made
    assert {node.domain for node in graph.node} == {""}
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    assert used <= made | {value.name for value in (*graph.input, *graph.initializer)} | {""}
    assert any(name.startswith("blocks.1.att.state.next_") for name in f32)
    assert {name.rpartition("_")[0] for name in f32} <= made
