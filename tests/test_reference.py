"""The oracle: against published logits, against the package rwkv, against itself written another way."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.targets.rwkv_package import RwkvPackage
from harness.targets.torch import ReferenceTarget
from reference.checkpoint import Checkpoint, load
from reference.fast import Fast
from reference.naive import Naive
from reference.shape import LoraRanks, ModelShape
from reference.state import State
from reference.synthetic import synthetic

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
MODELS = pytest.mark.parametrize("model", [Naive, Fast])


@contextmanager
def naive(checkpoint):
    """The recurrence as written, in float64."""
    yield ReferenceTarget(Naive(checkpoint))


@contextmanager
def fast(checkpoint):
    """The chunk-parallel reference, in float32."""
    yield ReferenceTarget(Fast(checkpoint))


OPINIONS = pytest.mark.parametrize("opinion", [naive, fast, RwkvPackage])
"""Two formulas by one author share misreadings: the package rwkv stands beside them."""


def small(n_layer: int = 2, n_embd: int = 128, head_size: int = 64, seed: int = 0) -> Checkpoint:
    """A synthetic checkpoint small enough for the naive recurrence."""
    ranks = LoraRanks(decay=8, rate=8, value=8, gate=16)
    shape = ModelShape(n_layer=n_layer, n_embd=n_embd, head_size=head_size, n_ffn=3 * n_embd, n_vocab=97, ranks=ranks)
    return synthetic(shape, seed)


@MODELS
@DTYPES
def test_published_logits(shared_data, model, dtype):
    """rwkv.cpp's own logits of its test model, after three tokens from the zero state."""
    folder = shared_data / "tiny_rwkv7_834k"
    expected = np.fromfile(folder / "expected-logits-7v0-834K.bin", "<f4")
    logits, _ = model(load(folder / "tiny-rwkv-7v0-834K-FP32.bin"), dtype).forward([34, 105, 110])
    assert abs(logits[-1].numpy() - expected).max() <= 1e-5
    assert int(logits[-1].argmax()) == 32


@OPINIONS
def test_published_logits_by_three_opinions(shared_data, opinion):
    """The same, all tokens at once and one by one."""
    folder = shared_data / "tiny_rwkv7_834k"
    expected = np.fromfile(folder / "expected-logits-7v0-834K.bin", "<f4")
    with opinion(load(folder / "tiny-rwkv-7v0-834K-FP32.bin")) as target:
        assert abs(target.run([34, 105, 110]).logits[-1] - expected).max() <= 1e-5
        state = target.run([34]).state
        state = target.run([105], state).state
        assert abs(target.run([110], state).logits[-1] - expected).max() <= 1e-5


@OPINIONS
def test_trained_task(shared_data, opinion):
    """A trained checkpoint still does what it was trained for: reverse the digits."""
    with opinion(load(shared_data / "reverse_l2_x070" / "reverse_x070_L2_D256_h64.pth")) as target:
        output = target.run([3, 1, 4, 1, 5, 9, 2, 6, 10])
        answer = []
        while len(answer) < 9:
            answer.append(int(output.logits[-1].argmax()))
            output = target.run([answer[-1]], output.state)
    assert answer == [6, 2, 9, 5, 1, 4, 1, 3, 11]


@pytest.mark.parametrize(("n_layer", "n_embd", "head_size"), [(2, 128, 64), (3, 64, 16), (1, 128, 128), (1, 64, 64)])
def test_three_opinions(n_layer, n_embd, head_size):
    """Naive, fast and the package agree in prefill and decode, on logits and every state, from a random state."""
    checkpoint = small(n_layer, n_embd, head_size)
    state = State.random(checkpoint.shape, 5, torch.float32).arrays()
    tokens = [5, 96, 0, 0, 17, 42, 42, 8, 1, 33, 60, 60, 60, 60, 2, 1, 0, 95, 94]
    with naive(checkpoint) as target:
        want = target.run(tokens, state)
    scale = abs(want.logits).max()
    for opinion in (fast, RwkvPackage):
        with opinion(checkpoint) as target:
            prefill = target.run(tokens, state)
            decode = [target.run(tokens[:1], state)]
            for token in tokens[1:]:
                decode.append(target.run([token], decode[-1].state))
        assert abs(prefill.logits - want.logits).max() <= 2e-5 * scale
        assert abs(np.concatenate([output.logits for output in decode]) - want.logits).max() <= 2e-5 * scale
        for end in (prefill.state, decode[-1].state):
            for got_array, want_array in zip(end, want.state, strict=True):
                assert abs(got_array - want_array).max() <= 2e-5 * max(1.0, abs(want_array).max())


@MODELS
def test_state_carries_over(model):
    """Cut anywhere, a sequence gives the logits of the whole."""
    engine = model(small(), torch.float64)
    tokens = [1, 2, 3, 4, 5, 6, 7]
    whole, whole_state = engine.forward(tokens)
    for cut in range(1, len(tokens)):
        first, state = engine.forward(tokens[:cut])
        second, state = engine.forward(tokens[cut:], state)
        torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state.wkv, whole_state.wkv, rtol=1e-12, atol=1e-12)


@MODELS
@pytest.mark.parametrize("tokens", [[], [97], [-1], [0, 1, 1000]])
def test_bad_tokens(model, tokens):
    """No tokens, or ids outside the vocabulary, are refused."""
    with pytest.raises(ValueError, match="token"):
        model(small()).forward(tokens)


def test_state_arrays_round_trip():
    """The exchange format of states loses nothing that float32 holds."""
    state = State.random(small().shape, 3, torch.float32)
    back = State.from_arrays(state.arrays(), torch.float32)
    assert torch.equal(back.wkv, state.wkv)
    assert torch.equal(back.att_shift, state.att_shift)
    assert torch.equal(back.ffn_shift, state.ffn_shift)


def test_synthetic_is_reproducible():
    """Equal arguments give equal bits and equal names; another seed gives another checkpoint."""
    one, same, other = small(), small(), small(seed=1)
    assert all(torch.equal(one.tensors[name], same.tensors[name]) for name in one.tensors)
    assert one.sha256 == same.sha256 != other.sha256
    assert not torch.equal(one.tensors["emb.weight"], other.tensors["emb.weight"])
    assert {"float32"} == {str(tensor.dtype).removeprefix("torch.") for tensor in one.tensors.values()}


def test_synthetic_decays_reach_both_ends():
    """Decays next to 1 and next to the lower end, 0.5452, both occur: a graph must survive either."""
    w0 = torch.cat([tensor for name, tensor in small().tensors.items() if name.endswith(".w0")])
    decays = torch.exp(-torch.sigmoid(w0) * torch.exp(torch.tensor(-0.5)))
    assert float(decays.min()) < 0.6
    assert float(decays.max()) > 0.998


def test_the_oracle_stands_alone():
    """The reference imports none of the compiler's graphs: an oracle that shares code with what it judges is blind."""
    command = [
        sys.executable,
        "-c",
        "import reference.naive, reference.emulated, reference.checkpoint, sys; print(*sys.modules)",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"compile", "harness", "runtime", "rwkv", "tpu_mlir"}
