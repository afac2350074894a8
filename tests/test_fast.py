"""The fast reference against the naive one: batches, chunks that do not divide, every head size, extreme decays."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import fast
from reference.checkpoint import load
from reference.fast import Fast
from reference.naive import Naive
from reference.shape import LoraRanks, ModelShape
from reference.state import State
from reference.synthetic import synthetic
from reference.wkv import CHUNK, plan, wkv_chunks, wkv_step

N_VOCAB = 31


def small(head_size=64, n_layer=2, seed=0, **vectors):
    """A checkpoint small enough for the naive recurrence; *vectors* overwrite all tensors of that last name."""
    ranks = LoraRanks(decay=8, rate=8, value=8, gate=16)
    shape = ModelShape(n_layer=n_layer, n_embd=128, head_size=head_size, n_ffn=256, n_vocab=N_VOCAB, ranks=ranks)
    checkpoint = synthetic(shape, seed)
    tensors = {
        name: torch.full_like(tensor, vectors[name.rpartition(".")[2]])
        if name.rpartition(".")[2] in vectors
        else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    return dataclasses.replace(checkpoint, tensors=tensors)


def compare(checkpoint, sequences, states):
    """Fast in both exact dtypes against naive: logits relative to the largest, states likewise."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        model = Fast(checkpoint, dtype)
        hidden, after = model.hidden(sequences, states)
        rows = torch.split(model.logits(hidden), [len(tokens) for tokens in sequences])
        for tokens, state, logits, end in zip(sequences, states, rows, after, strict=True):
            want, want_end = Naive(checkpoint).forward(tokens, state)
            assert float((logits - want).abs().max()) <= tolerance * float(want.abs().max())
            for part in ("att_shift", "wkv", "ffn_shift"):
                got_part, want_part = getattr(end, part), getattr(want_end, part)
                assert float((got_part - want_part).abs().max()) <= tolerance * max(1.0, float(want_part.abs().max()))


@settings(max_examples=10)
@given(
    head_size=st.sampled_from([16, 64, 128]),
    n_layer=st.integers(1, 3),
    sequences=st.lists(st.lists(st.integers(0, N_VOCAB - 1), min_size=1, max_size=3 * CHUNK), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_batches(head_size, n_layer, sequences, seed):
    """Sequences of unequal lengths, all at once, from random states: what the naive recurrence gives for each."""
    checkpoint = small(head_size, n_layer, seed)
    states = [State.random(checkpoint.shape, seed + b, torch.float64) for b in range(len(sequences))]
    compare(checkpoint, sequences, states)


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5])
def test_around_the_chunk_length(length):
    """Sequences just below, at and just above whole chunks."""
    checkpoint = small()
    compare(checkpoint, [[t % N_VOCAB for t in range(length)]], [State.random(checkpoint.shape, length, torch.float64)])


@pytest.mark.parametrize("w0", [-30.0, 30.0], ids=["decay next to 1", "decay 0.5452"])
@pytest.mark.parametrize("a0", [-30.0, 30.0], ids=["nothing removed", "all removed"])
@pytest.mark.parametrize("head_size", [16, 64, 128])
def test_both_ends(w0, a0, head_size):
    """Decays and in-context rates at the ends of their ranges, on a token that repeats and on tokens that do not.

    A repeated token with the full rate is where an inverse by powers of the matrix diverges.
    """
    checkpoint = small(head_size, 1, w0=w0, a0=a0)
    sequences = [[7] * 50, [(3 * t) % N_VOCAB for t in range(50)]]
    compare(checkpoint, sequences, [State.random(checkpoint.shape, b, torch.float64) for b in range(2)])


def test_long_sequence_does_not_drift():
    """Sixty chunks in a row stay as close as one."""
    checkpoint = small(64, 1)
    compare(checkpoint, [[(7 * t * t) % N_VOCAB for t in range(960)]], [State.zeros(checkpoint.shape, torch.float64)])


@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6))
def test_plan_places_every_token_once(lengths):
    """Every packed row has one place, in order inside its sequence; the rest of the places are vacant."""
    chunks = plan(lengths, torch.device("cpu"))
    assert chunks.rows.shape == (sum(chunks.active), CHUNK)
    assert len(set(chunks.places.tolist())) == sum(lengths)
    assert set(chunks.places.tolist()) | set(chunks.vacant.tolist()) == set(range(chunks.rows.numel()))
    assert chunks.rows.flatten()[chunks.places].tolist() == list(range(sum(lengths)))
    assert [lengths[b] for b in chunks.order] == sorted(lengths, reverse=True)


def test_chunks_equal_steps():
    """The chunk form is the recurrence, step by step, on numbers of any kind, for sequences that end apart."""
    generator = torch.Generator().manual_seed(0)
    lengths, H, N = [37, 5], 2, 16
    r, k, v, kappa, a = (torch.randn(sum(lengths), H, N, generator=generator, dtype=torch.float64) for _ in range(5))
    kappa = torch.nn.functional.normalize(kappa, dim=-1)
    a, log_w = torch.sigmoid(a), -0.6065 * torch.rand(sum(lengths), H, N, generator=generator, dtype=torch.float64)
    S = torch.randn(2, H, N, N, generator=generator, dtype=torch.float64)
    y, after = wkv_chunks(r, log_w, k, v, kappa, a, S, plan(lengths, torch.device("cpu")))
    row = 0
    for b, length in enumerate(lengths):
        state = S[b : b + 1]
        for _ in range(length):
            here = slice(row, row + 1)
            want, state = wkv_step(r[here], log_w[here], k[here], v[here], kappa[here], a[here], state)
            torch.testing.assert_close(y[here], want, rtol=1e-10, atol=1e-10)
            row += 1
        torch.testing.assert_close(after[b : b + 1], state, rtol=1e-10, atol=1e-10)


def test_states_given_are_not_changed():
    """A state can be used again."""
    checkpoint = small()
    state = State.random(checkpoint.shape, 0, torch.float32)
    before = state.wkv.clone()
    model = Fast(checkpoint)
    first, _ = model.forward([1, 2, 3], state)
    second, _ = model.forward([1, 2, 3], state)
    assert torch.equal(state.wkv, before)
    assert torch.equal(first, second)


def test_score_is_the_naive_log_softmax(monkeypatch):
    """Scores of many texts, in groups of a few tokens and a few rows of logits at a time, are those of single texts."""
    monkeypatch.setattr(fast, "BATCH_TOKENS", 20)
    monkeypatch.setattr(fast, "HEAD_ROWS", 3)
    checkpoint = small()
    state = State.random(checkpoint.shape, 0, torch.float64)
    texts = [([1 + n % 5] * (1 + n % 9), [(n * k) % N_VOCAB for k in range(1 + n % 4)]) for n in range(17)]
    for (prompt, continuation), got in zip(texts, Fast(checkpoint, torch.float64).score(texts, state), strict=True):
        logits, _ = Naive(checkpoint).forward([*prompt, *continuation[:-1]], state)
        rows = torch.log_softmax(logits[len(prompt) - 1 :], dim=-1)
        want = rows[range(len(continuation)), continuation]
        torch.testing.assert_close(got.log_probs, want, rtol=1e-9, atol=1e-9)
        assert torch.equal(got.is_top, rows.argmax(dim=-1) == torch.tensor(continuation))


@pytest.mark.parametrize("texts", [[([], [1])], [([1], [])]])
def test_score_needs_tokens(texts):
    """An empty prompt or continuation is refused."""
    with pytest.raises(ValueError, match="empty"):
        Fast(small()).score(texts)


def test_bfloat16_is_close():
    """On request the matrix products are bfloat16: near the truth, and not the truth."""
    checkpoint = small()
    tokens = list(range(30))
    want, want_state = Naive(checkpoint).forward(tokens)
    got, state = Fast(checkpoint, torch.bfloat16).forward(tokens)
    error = float((got - want).abs().max() / want.abs().max())
    assert 1e-4 < error < 0.05
    assert state.wkv.dtype is torch.float32
    assert float((state.wkv - want_state.wkv).abs().max() / want_state.wkv.abs().max()) < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda():
    """The same numbers on a CUDA device."""
    checkpoint = small()
    tokens = list(range(30))
    want, want_state = Naive(checkpoint).forward(tokens)
    got, state = Fast(checkpoint, torch.float64, "cuda").forward(tokens)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.wkv, want_state.wkv, rtol=1e-9, atol=1e-9)


SCORE_MANY = """
import torch
from reference.fast import Fast
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic
ranks = LoraRanks(decay=8, rate=8, value=8, gate=8)
shape = ModelShape(n_layer=1, n_embd=64, head_size=64, n_ffn=64, n_vocab=65536, ranks=ranks)
model = Fast(synthetic(shape))
import resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scores = model.score([([n] * 60, [n, n + 1, n + 2, n + 3]) for n in range(500)])
assert len(scores) == 500
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_bounded():
    """2,000 positions of a vocabulary of 65,536 are 500 MiB of logits; scoring them takes a fraction of that."""
    done = subprocess.run(
        [sys.executable, "-c", SCORE_MANY], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert int(done.stdout) * 1024 < 300 * 2**20


def test_trained_checkpoint_batched(shared_data):
    """Many questions to the trained checkpoint at once: every digit of every answer is the likeliest token."""
    model = Fast(load(shared_data / "reverse_l2_x070" / "reverse_x070_L2_D256_h64.pth"))
    digits = [[(3 * n + k * k) % 10 for k in range(1 + n % 30)] for n in range(60)]
    scores = model.score([([*d, 10], [*reversed(d), 11]) for d in digits])
    assert all(bool(score.is_top.all()) for score in scores)
