"""Layers as wide as those of a released model: several chunks in a row, then decode, from a state that is not zero."""

import pytest
import torch

from compile.graphs.model import Rwkv7
from compile.spec import Quantization
from harness.checkpoints import Model
from harness.limits import load_limits
from harness.metrics import logits_distance, state_nmse
from harness.oracle import oracle_for
from harness.prompts import prompt
from harness.targets.ort import OnnxRuntime
from harness.targets.scorers import Compiled, open_scorer
from reference.shape import LoraRanks, ModelShape
from reference.state import State
from reference.synthetic import synthetic
from tokenizer.codec import Codec

SHAPE = ModelShape(
    n_layer=2,
    n_embd=768,
    head_size=64,
    n_ffn=3072,
    n_vocab=512,
    ranks=LoraRanks(decay=64, rate=64, value=32, gate=128),
)
CHUNK = 64


@pytest.fixture(scope="module")
def model():
    """Two layers at the width of the 0.1B release."""
    return Model(synthetic(SHAPE), Codec.PLAIN)


@pytest.fixture(scope="module")
def tokens(model):
    """Two chunks and a tail."""
    return prompt(model, 2 * CHUNK + 7)


@pytest.fixture(scope="module")
def state():
    """A state that is not zero."""
    return State.random(SHAPE, 1, torch.float32).arrays()


def test_onnx_runtime(model, tokens, state):
    """The exported graphs are the reference, to the rounding of float32."""
    want = oracle_for(model.checkpoint, Quantization.F32).run(tokens, state)
    got = OnnxRuntime(model.arrays, Rwkv7, chunk_lengths=(CHUNK,)).run(tokens, state)
    assert abs(got.logits - want.logits).max() <= 1e-4 * abs(want.logits).max()
    assert max(state_nmse(want.state, got.state).values()) <= 1e-10


@pytest.mark.toolchain
@pytest.mark.long
@pytest.mark.parametrize("quantization", [Quantization.F16, Quantization.W8F16, Quantization.W4F16])
def test_interpreter_of_the_tpu_dialect(toolchain, model, tokens, state, quantization):
    """What the compiler makes of them stays within the caps of its precision."""
    want = oracle_for(model.checkpoint, quantization).run(tokens, state)
    compiled = Compiled(quantization=quantization, chunk_lengths=(CHUNK,), toolchain=toolchain.version)
    with open_scorer("tpu", model, compiled) as scorer:
        got = scorer.target.run(tokens, state)
    limits = load_limits()[0][quantization]
    distance = logits_distance(want.logits, got.logits, near_tie_nats=limits.near_tie_nats)
    assert limits.breaches(distance) == []
    assert limits.state_breaches(state_nmse(want.state, got.state)) == []
