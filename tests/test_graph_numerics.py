"""Every variant on inputs that break clever graphs: the float64 recurrence in float64, close to it in float32.

Hard are one token repeated (an inverse by a product of squares diverges), decays at their lower end (ratios of decays
leave the range) or next to 1, in-context rates next to 1, and outliers as trained models have them.
"""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from compile.graphs.loop import _Recurrence
from compile.graphs.named import _F32, Named
from compile.graphs.wkv import WkvChunks, WkvStep
from harness.cases import VARIANTS
from reference.naive import Naive
from reference.precision import Precision
from reference.shape import LoraRanks, ModelShape
from reference.state import State
from reference.synthetic import synthetic

DRAWS = 32
"""Heads are independent: each is a draw of its own."""

N = 16
LOWEST_LOG_DECAY = -np.exp(-0.5)  # of w = 0.5452


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Many small products: threads that wait for each other cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def chunk_recurrence(r, log_w, k, v, a, b, S):
    """The chunk variant's recurrence: vectors ``[H, T, N]`` and S ``[H, N, N]``, all of one dtype -> y, the new S."""
    T = r.shape[1]
    with torch._C.DisableTorchFunction():  # constants are not computed on the chip
        module = (WkvStep(r.shape[2]) if T == 1 else WkvChunks(T, r.shape[2])).to(r.dtype)
    return module(r, log_w.exp() if T == 1 else log_w, k, v, a, b, S)


def loop_recurrence(r, log_w, k, v, a, b, S):
    """The same of the loop variant."""
    step, ys = _Recurrence(), []
    for t in range(r.shape[1]):
        row, column = (slice(None), slice(t, t + 1)), (slice(None), t, slice(None), None)
        y, S = step(r[column], log_w[row], k[row], v[column], -a[column], b[row], S)
        ys.append(y.mT)
    return torch.cat(ys, dim=1), S


RECURRENCES = {"chunk": chunk_recurrence, "loop": loop_recurrence}


def oracle(r, log_w, k, v, a, b, S):
    """The recurrence as written, token by token: y, the new S, and the largest that S r could be with each S and r."""
    ys, bounds = [], []
    for r_t, log_w_t, k_t, v_t, a_t, b_t in zip(*(q.unbind(1) for q in (r, log_w, k, v, a, b)), strict=True):
        Sa = (S * a_t[:, None]).sum(2, keepdim=True)
        S = S * torch.exp(log_w_t)[:, None] + Sa * b_t[:, None] + v_t[:, :, None] * k_t[:, None]
        ys.append((S * r_t[:, None]).sum(2))
        bounds.append(S.abs().amax((1, 2)) * r_t.abs().sum(1))
    return torch.stack(ys, dim=1), S, torch.stack(bounds, dim=1)


def hard_inputs(T, *, seed, repeated, decay, rate, kappa, outlier, start):
    """Arguments of a recurrence: float64 tensors of float32 values."""
    generator = torch.Generator().manual_seed(seed)
    shape = (DRAWS, 1 if repeated else T, N)

    def uniform(low, high, size=shape):
        return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)

    def normal(size=shape):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def with_outliers():
        return torch.where(uniform(0, 1) < 1 / N, outlier, 1.0) * normal()

    r, k, v = (with_outliers() for _ in range(3))
    d = {"strong": uniform(6, 20), "weak": uniform(-30, -8), "any": uniform(-8, 8)}
    d["either"] = torch.where(uniform(0, 1) < 0.5, d["strong"], d["weak"])
    log_w = LOWEST_LOG_DECAY * torch.sigmoid(d[decay])
    b_rate = {"near 1": torch.sigmoid(uniform(5, 20)), "1": torch.ones(shape), "any": uniform(0, 1)}[rate]
    one_hot = torch.nn.functional.one_hot(torch.randint(N, (DRAWS, 1), generator=generator), N)
    removal = {"one-hot": one_hot, "equal": normal((DRAWS, 1, N)), "different": normal()}[kappa]
    removal = torch.nn.functional.normalize(removal.double().expand(shape), dim=2)
    S = start * normal((DRAWS, N, N))
    inputs = [q.expand(DRAWS, T, N) for q in (r, log_w, k, v, -removal, removal * b_rate)]
    return [q.float().double() for q in (*inputs, S)]


def relative_error(got, want, scale=None):
    """Per draw, the largest error by the largest wanted value, or by that of *scale*; the worst draw's."""
    largest = (want if scale is None else scale).abs().flatten(1).amax(1)
    return float(((got.double() - want).abs().flatten(1).amax(1) / largest.clamp(min=1e-30)).max())


RECIPES = {
    "repeated": st.booleans(),
    "decay": st.sampled_from(["strong", "weak", "either", "any"]),
    "rate": st.sampled_from(["near 1", "1", "any"]),
    "kappa": st.sampled_from(["one-hot", "equal", "different"]),
}


@pytest.mark.parametrize("variant", RECURRENCES)
@settings(max_examples=20)
@given(
    T=st.sampled_from([1, 16, 32, 64, 128, 256, 512]),
    seed=st.integers(0, 2**32 - 1),
    outlier=st.sampled_from([1.0, 1e2, 1e3]),
    start=st.sampled_from([0.0, 1.0, 1e3]),
    recipe=st.fixed_dictionaries(RECIPES),
)
def test_recurrence(variant, T, seed, outlier, start, recipe):
    """640 draws of every hard kind, up to 512 tokens: y and S to 1e-10 in float64, to 1e-4 in float32.

    The error of y is relative to the largest that S r could be: where the sum cancels, no graph can be nearer.
    """
    inputs = hard_inputs(T, seed=seed, outlier=outlier, start=start, **recipe)
    want_y, want_S, bound = oracle(*inputs)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        y, S = RECURRENCES[variant](*(q.to(dtype) for q in inputs))
        assert y.dtype is S.dtype is dtype
        assert relative_error(y, want_y, bound) <= tolerance
        assert relative_error(S, want_S) <= tolerance


SHAPE = ModelShape(
    n_layer=2, n_embd=32, head_size=N, n_ffn=64, n_vocab=20, ranks=LoraRanks(decay=8, rate=8, value=8, gate=8)
)


@functools.cache
def hard_checkpoint(decay, kappa):
    """Decays at one end, in-context rates next to 1, removal keys with one channel or all; mixes that reach 9."""
    checkpoint = synthetic(SHAPE)
    generator = torch.Generator().manual_seed(1)
    first = torch.arange(SHAPE.n_embd) % N == 0
    low, high = {"strong": (6, 20), "weak": (-30, -8)}[decay]

    def hard(name, tensor):
        match name.split(".")[2:]:
            case ["att", "w0"]:
                return torch.empty_like(tensor).uniform_(low, high, generator=generator)
            case ["att", "a0"]:
                return torch.empty_like(tensor).uniform_(6, 20, generator=generator)
            case ["att", "k_k"] if kappa == "one-hot":
                return tensor * first
            case ["att" | "ffn", mu] if mu.startswith("x_"):
                return torch.where(first, 9.0, tensor)
            case ["att", "receptance" | "key" | "value", "weight"]:
                return tensor * torch.where(first.roll(1), 100.0, 1.0)[:, None]
        return tensor

    return dataclasses.replace(checkpoint, tensors={name: hard(name, t) for name, t in checkpoint.tensors.items()})


@functools.cache
def hard_run(decay, kappa, repeated, start, length):
    """Tokens, a state before them, and the naive reference's logits and state after them."""
    tokens = [7] * length if repeated else np.random.default_rng(0).integers(0, SHAPE.n_vocab, length).tolist()
    state = State.random(SHAPE, 0, torch.float32)
    state = State(state.att_shift, start * state.wkv, state.ffn_shift)
    return tokens, state, *Naive(hard_checkpoint(decay, kappa)).forward(tokens, state)


def run_graph(graph, tokens, state, dtype):
    """All tokens, call after call: logits of each, and the states after the last."""
    graph = graph.to(dtype)
    shapes = [shape for _, shape in graph.dims.state_shapes()]
    states = [torch.tensor(a).to(dtype).reshape(shape) for a, shape in zip(state.arrays(), shapes, strict=True)]
    rows = []
    for cut in range(0, len(tokens), graph.T):
        logits, *states = graph(torch.tensor([tokens[cut : cut + graph.T]]), *states)
        rows.append(logits[0])
    return torch.cat(rows), states


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("T", [1, 16, 64])
@pytest.mark.parametrize(
    ("decay", "kappa", "repeated", "start"),
    [
        ("strong", "all", True, 0.0),
        ("strong", "one-hot", False, 1e3),
        ("weak", "all", False, 1.0),
        ("weak", "one-hot", True, 1.0),
        ("weak", "all", True, 1e3),
    ],
)
def test_model(variant, T, decay, kappa, repeated, start):
    """512 tokens through whole graphs (64 one by one), in calls of T: logits and states, by the same bounds."""
    tokens, state, want, want_state = hard_run(decay, kappa, repeated, start, 64 if T == 1 else 512)
    arrays = {name: tensor.numpy() for name, tensor in hard_checkpoint(decay, kappa).tensors.items()}
    graph = VARIANTS[variant](arrays, T=T, every_position=True)
    layers = zip(want_state.att_shift, want_state.wkv, want_state.ffn_shift, strict=True)
    wanted = [part for layer in layers for part in layer]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        logits, states = run_graph(graph, tokens, state, dtype)
        assert logits.dtype is dtype
        assert relative_error(logits[None], want[None]) <= tolerance
        for got, part in zip(states, wanted, strict=True):
            assert got.dtype is dtype
            assert relative_error(got.reshape(1, -1), part.reshape(1, -1)) <= tolerance


_SUMS = {torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__}
_CLIPS = (torch.clamp, torch.minimum, torch.maximum, torch.where)


def _rounded(x):
    return Precision.F16.keep(x) if isinstance(x, torch.Tensor) and x.dtype is torch.float32 else x


class _Float16(TorchFunctionMode):
    """Computes as the chip does in F16: operands and results rounded, but not what a graph marks float32.

    Attributes:
        overflows: results that are not finite. What a later operation clips does not count.
    """

    def __init__(self):
        super().__init__()
        self.overflows = []

    def __enter__(self):
        self._hook = register_module_forward_hook(self._unrounded)
        return super().__enter__()

    def __exit__(self, *error):
        self._hook.remove()
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        exact = func(*args, **(kwargs or {}))
        if not isinstance(exact, torch.Tensor) or exact.dtype is not torch.float32:
            return exact
        rounded = Precision.F16.keep(func(*tree_map(_rounded, args), **tree_map(_rounded, kwargs or {})))
        rounded.exact, rounded.shown = exact, f"{getattr(func, '__name__', func)} {tuple(exact.shape)}"
        if func in _SUMS:
            rounded.terms = args
        if func in _CLIPS:
            for x in args:
                self._forget(x)
        if not bool(torch.isfinite(rounded).all()):
            self.overflows.append(rounded)
        return rounded

    def _unrounded(self, module, _inputs, output):
        if isinstance(module, Named) and module.mark == _F32:
            self._forget(output)
            return getattr(output, "exact", output)
        return None

    def _forget(self, x):
        self.overflows = [overflow for overflow in self.overflows if overflow is not x]
        for term in getattr(x, "terms", ()):  # an infinity passes through a sum
            self._forget(term)


@pytest.mark.parametrize("variant", RECURRENCES)
@settings(max_examples=16)
@given(
    T=st.sampled_from([1, 16, 32, 64]),
    seed=st.integers(0, 2**32 - 1),
    outlier=st.sampled_from([1.0, 10.0, 30.0]),
    start=st.sampled_from([0.0, 1.0, 1e3]),
    recipe=st.fixed_dictionaries(RECIPES),
)
def test_recurrence_in_float16(variant, T, seed, outlier, start, recipe):
    """512 draws whose y and S float16 can hold: no step on the way overflows, and y and S are near."""
    *vectors, S = hard_inputs(T, seed=seed, outlier=outlier, start=start, **recipe)
    r, log_w, k, v, a, b = (_rounded(q.float()).double() for q in vectors)
    # y and S are linear in v and the first S: these decide whether float16 can hold them.
    *_, bound = oracle(r, log_w, k, v, a, b, S)
    fits = torch.clamp(2e4 / bound.amax(1), max=1.0)[:, None, None]
    v, S = _rounded((fits * v).float()).double(), (fits * S).float().double()
    want_y, want_S, bound = oracle(r, log_w, k, v, a, b, S)
    with _Float16() as mode:
        y, S = RECURRENCES[variant](*(q.float() for q in (r, log_w, k, v, a, b, S)))
    assert not [overflow.shown for overflow in mode.overflows]
    assert relative_error(y, want_y, bound) <= 5e-3
    assert relative_error(S, want_S) <= 2e-2
