"""Number formats by hand-computed examples, and the emulated forward pass."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compile.spec import Quantization
from harness.checkpoints import open_model
from harness.metrics import logits_distance, state_nmse
from harness.prompts import prompt
from harness.targets.bmodel import BmodelTarget
from harness.targets.scorers import CMODEL, Compiled, open_scorer
from harness.targets.torch import ReferenceTarget
from reference.emulated import Emulated, stored
from reference.fast import Fast
from reference.precision import GROUP, Precision, coded
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


def test_four_bits_by_hand():
    """A group from -0.5 to 1 has steps of 0.1 and its zero at code 5; another group of the same output its own."""
    group = torch.zeros(GROUP)
    group[:4] = torch.tensor([-0.5, 1.0, 0.26, 0.04])
    other = torch.full((GROUP,), 3.0)
    kept = coded(torch.cat([group, other])[:, None], 4)[:, 0]
    step = float(np.float16(0.1))
    torch.testing.assert_close(kept[:4], torch.tensor([-5 * step, 10 * step, 3 * step, 0.0]))
    assert torch.equal(kept[4:GROUP], torch.zeros(GROUP - 4))
    torch.testing.assert_close(kept[GROUP:], torch.full((GROUP,), 15 * float(np.float16(0.2))))


def test_eight_bits_by_hand():
    """From -1.27 to 1.28 steps are 0.01 and zero is code 127; each output has its own."""
    W = torch.zeros(GROUP, 2)
    W[:4, 0] = torch.tensor([-1.27, 1.28, 0.014, -0.006])
    W[:4, 1] = torch.tensor([0.0, 5.1, 0.029, 0.031])
    small, large = float(np.float16(0.01)), float(np.float16(0.02))
    want = [[-127 * small, 0.0], [128 * small, 255 * large], [1 * small, 1 * large], [-1 * small, 2 * large]]
    torch.testing.assert_close(coded(W, 8)[:4], torch.tensor(want))


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_matrices(bits):
    """All zeros stay zeros: nothing is divided by a step of 0."""
    zeros = torch.zeros(GROUP, 3)
    assert torch.equal(coded(zeros, bits), zeros)


@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(1e-3, 1e2), bits=st.sampled_from([4, 8]))
def test_codes_are_within_a_step(seed, spread, bits):
    """Few values a group, and none further off than a step: half for the code, half for the zero point."""
    W = torch.randn(2 * GROUP, 5, generator=torch.Generator().manual_seed(seed)) * spread
    kept = coded(W, bits)
    groups = W.view(2, GROUP, 5)
    step = (groups.amax(dim=1, keepdim=True).clamp(min=0) - groups.amin(dim=1, keepdim=True).clamp(max=0)) / (
        2**bits - 1
    )
    error = (kept - W).abs().view(2, GROUP, 5)
    assert bool((error <= 1.01 * step + groups.abs() * 2**-10).all())
    assert max(len(kept[:GROUP, out].unique()) for out in range(5)) <= 2**bits


def test_a_matrix_that_groups_do_not_divide_stays_f16():
    """With 63 inputs there is no whole group."""
    W = torch.randn(GROUP - 1, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Precision.W4F16.keep_matrix(W), Precision.F16.keep(W))


SHAPE = ModelShape(
    n_layer=2, n_embd=128, head_size=64, n_ffn=256, n_vocab=97, ranks=LoraRanks(decay=8, rate=8, value=8, gate=64)
)


@pytest.mark.parametrize("precision", Precision)
def test_emulated_weights(precision):
    """Matrices are rounded by their format, vectors by that of the activations, embedding and norms not at all."""
    checkpoint = synthetic(SHAPE)
    emulated, exact = Emulated(checkpoint, precision)._weights, Fast(checkpoint)._weights
    for name, weight in emulated.items():
        if ".ln1." in name or ".ln0." in name or "ln_out" in name or name == "emb.weight":
            want = exact[name]
        elif name.endswith((".x_r", ".w0", ".r_k", "ln_x.weight")):
            want = precision.keep(exact[name])
        elif name.endswith((".w1", "key.weight", "head.weight", ".g2")):
            want = precision.keep_matrix(exact[name].T).T
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


@pytest.mark.toolchain
@pytest.mark.parametrize("precision", [Precision.W8F16, Precision.W4F16])
def test_compiled_formats_are_the_emulated_ones(toolchain, precision):
    """A quantised bmodel on the simulator is as far from the emulation of its format as F16 is from the reference."""
    model = open_model(None)
    tokens = prompt(model, 12)
    emulated = ReferenceTarget(Emulated(model.checkpoint, precision)).run(tokens)
    exact = ReferenceTarget(Fast(model.checkpoint)).run(tokens)
    compiled = Compiled(quantization=Quantization(precision.value), chunk_lengths=(), toolchain=toolchain.version)
    with open_scorer(CMODEL, model, compiled) as scorer:
        got = BmodelTarget(scorer.engine, "decode").run(tokens)
    distance = logits_distance(emulated.logits, got.logits, near_tie_nats=0.01)
    assert distance.kl_mean_nats <= 1e-4
    assert max(state_nmse(emulated.state, got.state).values()) <= 2e-5
    assert logits_distance(exact.logits, got.logits, near_tie_nats=0.01).kl_mean_nats > 1e-4


def test_emulation_ends_with_the_call():
    """Rounding is confined to the emulated model's own forward pass."""
    model = Emulated(synthetic(SHAPE), Precision.F16)
    model.forward([1, 2])
    assert float(torch.tensor(1.0) + torch.tensor(2**-20)) != 1.0


@pytest.mark.parametrize("precision", [Precision.W8F16, Precision.W4F16])
def test_what_is_stored(precision):
    """The weights that a precision stands for, in float64, are far nearer to its emulation than the weights given."""
    checkpoint = synthetic(SHAPE)
    tokens = list(range(24))
    emulated, kept, given = (
        model.forward(tokens)[0].numpy()
        for model in (
            Emulated(checkpoint, precision),
            Fast(stored(checkpoint, precision), torch.float64),
            Fast(checkpoint, torch.float64),
        )
    )
    of_rounding = logits_distance(kept, emulated, near_tie_nats=0.01).kl_mean_nats
    assert of_rounding < 0.1 * logits_distance(given, emulated, near_tie_nats=0.01).kl_mean_nats
