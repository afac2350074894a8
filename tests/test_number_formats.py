"""Formats of stored numbers: what they keep, and a reference whose state is stored in them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.fast import Fast
from reference.naive import Naive
from reference.number_formats import NumberFormat, RoundedState
from reference.shape import LoraRanks, ModelShape
from reference.state import State
from reference.synthetic import synthetic

SHAPE = ModelShape(
    n_layer=2, n_embd=8, head_size=4, n_ffn=12, n_vocab=11, ranks=LoraRanks(decay=3, rate=3, value=2, gate=4)
)


@given(st.sampled_from(NumberFormat), st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=1))
def test_keep(number_format, values):
    """Rounding moves no number by more than half a step, and what is stored is stored again as it is."""
    x = torch.tensor([values], dtype=torch.float32)
    kept = number_format.keep(x)
    largest = x.abs().max()
    step = {
        NumberFormat.FP32: torch.zeros_like(x),
        NumberFormat.FP16: x.abs() * 2**-11 + 2**-25,
        NumberFormat.BF16: x.abs() * 2**-8 + 1e-40,
        NumberFormat.INT8: (largest / 127 / 2).expand_as(x) + 1e-6 * largest,
    }[number_format]
    assert ((kept - x).abs() <= step).all()
    assert torch.allclose(number_format.keep(kept), kept, rtol=1e-6, atol=0)


def test_a_state_of_float32_is_the_reference():
    """Stored exactly, the state of sequences of several lengths means what it means to the fast reference."""
    checkpoint = synthetic(SHAPE)
    sequences = [[1, 2, 3, 4, 5] * 5, [7], [3, 3, 3]]
    states = [State.random(SHAPE, seed, torch.float32) for seed in range(3)]
    want, want_states = Fast(checkpoint).hidden(sequences, states)
    got, got_states = RoundedState(checkpoint, NumberFormat.FP32).hidden(sequences, states)
    assert torch.allclose(got, want, atol=1e-4)
    for a, b in zip(got_states, want_states, strict=True):
        for part in ("att_shift", "wkv", "ffn_shift"):
            assert torch.allclose(getattr(a, part), getattr(b, part), atol=1e-4)


@pytest.mark.parametrize("number_format", [NumberFormat.FP16, NumberFormat.BF16, NumberFormat.INT8])
def test_a_rounded_state_is_rounded_after_every_token(number_format):
    """One token at a time by the naive recurrence, with a rounded state between: the same numbers."""
    checkpoint = synthetic(SHAPE)
    tokens = [1, 2, 3, 9, 9, 4]
    state = State.zeros(SHAPE, torch.float32)
    for token in tokens:
        logits, state = Naive(checkpoint, torch.float32).forward([token], state)
        state = State(*(number_format.keep(part) for part in (state.att_shift, state.wkv, state.ffn_shift)))
    model = RoundedState(checkpoint, number_format)
    got, got_state = model.forward(tokens)
    assert torch.allclose(got[-1], logits[-1], atol=2e-3)
    assert torch.allclose(got_state.wkv, state.wkv, atol=0.03 * float(state.wkv.abs().max()))
    exact, _ = Fast(checkpoint).forward(tokens)
    assert (got[-1] - exact[-1]).abs().max() > 1e-5


def test_keep_matrices():
    """Matrices are rounded, vectors are not."""
    tensors = dict(synthetic(SHAPE).tensors)
    kept = NumberFormat.INT8.keep_matrices(tensors)
    changed = {name for name in tensors if not torch.equal(kept[name], tensors[name])}
    assert {"emb.weight", "head.weight", "blocks.0.att.w1", "blocks.1.ffn.key.weight"} <= changed
    assert all(tensors[name].dim() == 2 and not name.endswith("r_k") for name in changed)
