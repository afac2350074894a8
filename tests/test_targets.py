"""Every engine that can be chosen by name: against the naive recurrence, from a state that is not zero."""

import msgspec
import numpy as np
import pytest
import torch

from compile.compiler import CompileError, Stage
from compile.graphs.model import Rwkv7
from compile.toolchain import RECEIPT
from harness.checkpoints import Model, open_model
from harness.metrics import logits_distance, state_nmse
from harness.prompts import prompt
from harness.targets.base import Score
from harness.targets.ort import OnnxRuntime
from harness.targets.rwkv_package import RwkvPackage, RwkvPackageError
from harness.targets.scorers import CMODEL, DESCRIPTIONS, DIALECTS, EMULATED, SAIL, Compiled, ScorerError, open_scorer
from harness.targets.torch import ReferenceTarget
from reference.emulated import Emulated
from reference.naive import Naive
from reference.shape import LoraRanks, ModelShape
from reference.state import State
from reference.state_file import load_state, save_state
from reference.synthetic import synthetic
from tests.a_receipt import a_receipt
from tokenizer.codec import Codec

SHAPE = ModelShape(
    n_layer=2, n_embd=128, head_size=64, n_ffn=256, n_vocab=97, ranks=LoraRanks(decay=8, rate=8, value=8, gate=16)
)
TOKENS = [5, 96, 0, 0, 17, 42, 42, 8, 1, 33, 60, 2, 2, 2, 7, 9, 11, 80, 3]
TEXTS = [(TOKENS[:7], TOKENS[7:10]), (TOKENS[:1], TOKENS[1:2]), (TOKENS[:18], TOKENS[18:])]


@pytest.fixture(scope="module")
def model():
    """A model small enough for everything."""
    return Model(synthetic(SHAPE), Codec.PLAIN, None)


@pytest.fixture(scope="module")
def state():
    """A state that is not zero."""
    return State.random(SHAPE, 1, torch.float32).arrays()


def tuned_state(shape, folder):
    """A tuned initial state, as its file gives it."""
    random = State.random(shape, 2, torch.float32)
    zeros = State.zeros(shape, torch.float32)
    save_state(State(zeros.att_shift, 3 * random.wkv, zeros.ffn_shift), folder / "state.pth")
    return load_state(folder / "state.pth", shape).arrays()


@pytest.fixture(scope="module")
def want(model, state):
    """What the naive recurrence says."""
    return ReferenceTarget(Naive(model.checkpoint)).run(TOKENS, state)


@pytest.fixture(scope="module")
def package(model):
    """The package rwkv, loaded once."""
    with RwkvPackage(model.checkpoint) as package:
        yield package


def agrees(got, want, tolerance):
    """Every position and every state tensor, relative to the largest number."""
    assert got.positions == want.positions
    assert abs(got.logits - want.logits).max() <= tolerance * abs(want.logits).max()
    for got_array, want_array in zip(got.state, want.state, strict=True):
        assert got_array.shape == want_array.shape
        assert abs(got_array - want_array).max() <= tolerance * max(1.0, abs(want_array).max())


def test_package_leaves_the_state_alone(package, state):
    """The package writes into the list of states that it gets: it must not be the caller's."""
    given = [array.copy() for array in state]
    first, second = package.run(TOKENS, given), package.run(TOKENS, given)
    assert np.array_equal(first.logits, second.logits)
    assert all(np.array_equal(a, b) for a, b in zip(given, state, strict=True))


def test_package_failures(model):
    """An error inside the package is told; so is its sudden death; closing twice is harmless."""
    package = RwkvPackage(model.checkpoint)
    with pytest.raises(RwkvPackageError, match="out of range"):
        package.run([SHAPE.n_vocab])
    package.close()
    package.close()
    package = RwkvPackage(model.checkpoint)
    package._process.kill()
    with pytest.raises(RwkvPackageError, match="status -9"):
        package.run([1])
    package.close()


@pytest.mark.parametrize("chunk_lengths", [(), (4,), (16, 4)])
def test_onnx_runtime(model, state, want, chunk_lengths):
    """The exported graphs, whatever the chunks that the tokens are cut into."""
    agrees(OnnxRuntime(model.arrays, Rwkv7, chunk_lengths).run(TOKENS, state), want, 2e-5)


@pytest.mark.parametrize("name", sorted(set(DESCRIPTIONS) - {CMODEL, "N", "ssh://user@host/N", SAIL, *DIALECTS}))
def test_scorers_by_name(model, state, name):
    """Each scores texts as the naive recurrence does, within its precision."""
    with open_scorer("naive", model) as naive:
        want = naive.score(TEXTS, state)
    with open_scorer(name, model) as scorer:
        got = scorer.score(TEXTS, state)
        assert scorer.identity["target"] == name
    coarse = dict.fromkeys(("torch-bf16", "emulated-bf16", "emulated-w8f16", "emulated-w8bf16"), 0.2)
    within = {**coarse, "emulated-w4f16": 2.0, "emulated-w4bf16": 2.0}.get(name, 0.01)
    for got_score, want_score in zip(got, want, strict=True):
        assert abs(got_score.log_probs - want_score.log_probs).max() <= within
        if name in {"torch", "rwkv", "ort"}:
            assert abs(got_score.log_probs - want_score.log_probs).max() <= 1e-4
            assert np.array_equal(got_score.is_top, want_score.is_top)


@pytest.mark.parametrize("name", ["torch", "emulated-f16", "rwkv", "ort"])
def test_tuned_state_reaches_every_target(model, tmp_path, name):
    """From a state file every target scores as the naive recurrence does; from the transposed state it does not."""
    state = tuned_state(SHAPE, tmp_path)
    transposed = [array.transpose(0, 2, 1) if array.ndim == 3 else array for array in state]
    with open_scorer("naive", model) as naive:
        want = naive.score(TEXTS, state)
    with open_scorer(name, model) as scorer:
        got, wrong = scorer.score(TEXTS, state), scorer.score(TEXTS, transposed)
    for got_score, want_score in zip(got, want, strict=True):
        assert abs(got_score.log_probs - want_score.log_probs).max() <= 0.02
    assert max(abs(a.log_probs - b.log_probs).max() for a, b in zip(wrong, want, strict=True)) > 0.5


def test_score_is_of_the_continuation():
    """By hand: two positions, two tokens, natural logarithms."""
    score = Score.of(np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])), [1, 2])
    assert score.log_probs == pytest.approx([np.log(0.25), np.log(0.7)])
    assert score.is_top.tolist() == [False, True]


@pytest.mark.parametrize("name", ["gpu", "", "sail:", "sail:x", "top:0", "-1"])
def test_unknown_name(model, name):
    """A name that is none lists those that are."""
    with pytest.raises(ScorerError, match=f"no target '{name}'.*naive, torch"), open_scorer(name, model):
        pass


def test_emulated_precisions_are_ordered(model, state, want):
    """The coarser the format, the further from the truth; each is on its own order of magnitude."""
    kl = {}
    for name, precision in EMULATED.items():
        got = ReferenceTarget(Emulated(model.checkpoint, precision)).run(TOKENS, state)
        kl[name] = logits_distance(want.logits, got.logits, near_tie_nats=0.0).kl_mean_nats
        assert max(state_nmse(want.state, got.state).values()) < 0.1
    assert kl["emulated-f16"] < 1e-4 < kl["emulated-bf16"] < kl["emulated-w4f16"]
    assert kl["emulated-f16"] < kl["emulated-w8f16"] < kl["emulated-w4f16"]


@pytest.mark.toolchain
def test_simulator(toolchain, tmp_path):
    """Bmodels on the simulator: prompts through prefill and decode, from a tuned state, within the rounding of F16."""
    model = open_model(None)
    state = tuned_state(model.checkpoint.shape, tmp_path)
    tokens = prompt(model, 40)
    texts = [(tokens[:19], tokens[19:21]), (tokens[:3], tokens[3:4])]
    with open_scorer("torch", model) as scorer:
        want = scorer.score(texts, state)
    with open_scorer(CMODEL, model, Compiled(chunk_lengths=(16,), toolchain=toolchain.version)) as scorer:
        got = scorer.score(texts, state)
        assert "simulator" in scorer.description
        assert any("libbmrt" in key for key in scorer.identity), scorer.identity
    for got_score, want_score in zip(got, want, strict=True):
        assert abs(got_score.log_probs - want_score.log_probs).max() < 0.05


@pytest.mark.parametrize("name", ["compile_graph", "lowered"])
def test_the_time_limit(model, monkeypatch, tmp_path, name):
    """What compiles for a target has the limit that was asked for: bmodels and the compiler's dialects alike."""
    limits = []

    def stopped(*_, timeout_s, **__):
        limits.append(timeout_s)
        raise CompileError(Stage.TRANSFORM, "decode", "was stopped")

    monkeypatch.setattr(f"harness.targets.{'scorers' if name == 'compile_graph' else 'interpreter'}.{name}", stopped)
    monkeypatch.setenv("RWKV_TPU_CACHE", str(tmp_path))
    root = tmp_path / "toolchains" / "1.30.2-0"
    root.mkdir(parents=True)
    (root / RECEIPT).write_bytes(msgspec.json.encode(a_receipt()))
    target = CMODEL if name == "compile_graph" else "top"
    with pytest.raises(CompileError), open_scorer(target, model, Compiled(stage_timeout_s=7.0)):
        pass
    assert limits == [7.0]
