"""Number formats by hand-computed examples, and the emulated forward pass."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.emulated import Emulated
from reference.fast import Fast
from reference.precision import GROUP, Precision, int4, int8
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (1.0 + 2**-11, 1.0),  # half a step above 1: to even
        (1.0 + 3 * 2**-11, 1.0 + 2**-9),  # one and a half steps above 1: to even, upwards
        (2049.0, 2048.0),  # steps of 2 from 2048 on
        (65504.0, 65504.0),  # the largest
        (65520.0, float("inf")),  # half a step above the largest
        (2**-24, 2**-24),  # the smallest subnormal
        (2**-26, 0.0),
    ],
)
def test_f16_by_definition(given, kept):
    """Ten bits behind the leading one, exponents -14 to 15, to nearest, ties to even."""
    assert float(Precision.F16.keep(torch.tensor(given))) == kept


@pytest.mark.parametrize(
    ("given", "kept"),
    [(1.0 + 2**-8, 1.0), (1.0 + 3 * 2**-8, 1.0 + 2**-6), (257.0, 256.0), (3e38, 3.00405e38), (1e-40, 1e-40)],
)
def test_bf16_by_definition(given, kept):
    """Seven bits behind the leading one, the exponents of float32."""
    assert float(Precision.BF16.keep(torch.tensor(given))) == pytest.approx(kept, rel=1e-2 if given < 1e-38 else 2e-5)


def test_int8_by_hand():
    """One scale an output: 1.27 gives steps of 0.01, 2.54 of 0.02; both scales as F16 holds them."""
    W = torch.tensor([[1.27, 2.54], [0.014, 0.014], [-0.006, -0.031]])
    step = float(np.float16(0.01)), float(np.float16(0.02))
    want = [[127 * step[0], 127 * step[1]], [1 * step[0], 1 * step[1]], [-1 * step[0], -2 * step[1]]]
    torch.testing.assert_close(int8(W), torch.tensor(want))


def test_int4_by_hand():
    """A group from -0.5 to 1 has steps of 0.1 and its zero at code 5; another group of the same output its own."""
    group = torch.zeros(GROUP)
    group[:4] = torch.tensor([-0.5, 1.0, 0.26, 0.04])
    other = torch.full((GROUP,), 3.0)
    kept = int4(torch.cat([group, other])[:, None])[:, 0]
    step = float(np.float16(0.1))
    torch.testing.assert_close(kept[:4], torch.tensor([-5 * step, 10 * step, 3 * step, 0.0]))
    assert torch.equal(kept[4:GROUP], torch.zeros(GROUP - 4))
    torch.testing.assert_close(kept[GROUP:], torch.full((GROUP,), 15 * float(np.float16(0.2))))


def test_zero_matrices():
    """All zeros stay zeros: no scale is divided by."""
    zeros = torch.zeros(GROUP, 3)
    assert torch.equal(int8(zeros), zeros)
    assert torch.equal(int4(zeros), zeros)


@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(1e-3, 1e2))
def test_codes_are_within_half_a_step(seed, spread):
    """No weight moves by more than half a step of its scale, give or take the rounding of the scale to F16."""
    W = torch.randn(2 * GROUP, 5, generator=torch.Generator().manual_seed(seed)) * spread
    step8 = W.abs().amax(dim=0) / 127
    assert bool(((int8(W) - W).abs() <= 0.5 * step8 + W.abs() * 2**-10 + 1e-7 * 127).all())
    groups = W.view(2, GROUP, 5)
    step4 = (groups.amax(dim=1) - groups.amin(dim=1)) / 15
    error = (int4(W) - W).abs().view(2, GROUP, 5)
    assert bool((error <= 1.01 * step4[:, None] + groups.abs() * 2**-9).all())
    assert len(int8(W)[:, 0].unique()) <= 255
    assert len(int4(W)[:GROUP, 0].unique()) <= 16


def test_a_matrix_that_groups_do_not_divide_stays_f16():
    """With 63 inputs there is no whole group."""
    W = torch.randn(GROUP - 1, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Precision.W4F16.keep_matrix(W), Precision.F16.keep(W))


SHAPE = ModelShape(
    n_layer=2, n_embd=128, head_size=64, n_ffn=256, n_vocab=97, ranks=LoraRanks(decay=8, rate=8, value=8, gate=64)
)


@pytest.mark.parametrize("precision", Precision)
def test_emulated_weights(precision):
    """Matrices are rounded by their format, vectors by that of the activations, layer norms not at all."""
    checkpoint = synthetic(SHAPE)
    emulated, exact = Emulated(checkpoint, precision)._weights, Fast(checkpoint)._weights
    for name, weight in emulated.items():
        if ".ln1." in name or ".ln0." in name or "ln_out" in name:
            want = exact[name]
        elif name.endswith((".x_r", ".w0", "emb.weight", ".r_k", "ln_x.weight")):
            want = precision.keep(exact[name])
        elif name.endswith((".w1", "key.weight", "head.weight", ".g2")):
            want = precision.keep_matrix(exact[name])
        else:
            continue
        assert torch.equal(weight, want), name


def test_emulated_activations_are_of_the_format():
    """What leaves the head is a number of the format; the state is float32, and exact on the way in."""
    model = Emulated(synthetic(SHAPE), Precision.F16)
    logits, state = model.forward(list(range(20)))
    assert torch.equal(Precision.F16.keep(logits), logits)
    assert not torch.equal(Precision.F16.keep(state.wkv), state.wkv)
    again, _ = model.forward([20], state)
    whole, _ = model.forward(list(range(21)))
    torch.testing.assert_close(again[-1], whole[-1], rtol=0, atol=0.02 * float(whole.abs().max()))


def test_emulation_ends_with_the_call():
    """Rounding is confined to the emulated model's own forward pass."""
    model = Emulated(synthetic(SHAPE), Precision.F16)
    model.forward([1, 2])
    assert float(torch.tensor(1.0) + torch.tensor(2**-20)) != 1.0
