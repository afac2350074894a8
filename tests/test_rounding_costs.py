"""What rounding costs by itself, over more prompts than the simulator has time for: some of the caps rest on it."""

import pytest
import torch

from compile.spec import Quantization
from harness.limits import load_limits
from harness.metrics import logits_distance, state_nmse
from harness.targets.torch import ReferenceTarget
from reference.checkpoint import load
from reference.emulated import Emulated
from reference.fast import Fast
from reference.precision import Precision
from reference.state import State
from tests.detection.good import MODELS, model

TOKENS = 96
ROUNDED = {
    Quantization.F32: lambda checkpoint: Fast(checkpoint, torch.float32),
    Quantization.BF16: lambda checkpoint: Emulated(checkpoint, Precision.BF16),
}
PROMPTS = {Quantization.F32: 12, Quantization.BF16: 6}


def prompt(seed, n_vocab):
    """Random ids, or one of them again and again."""
    if seed % 3 == 0:
        return [seed % n_vocab] * TOKENS
    return torch.randint(0, n_vocab, (TOKENS,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.long
@pytest.mark.parametrize("name", [*sorted(MODELS), "reverse_x070_L2_D256_h64"])
@pytest.mark.parametrize("quantization", ROUNDED)
def test_within_the_worst_good(shared_data, quantization, name):
    """Right arithmetic, rounded, stays within what `suites/limits.toml` calls the worst of good runs."""
    path = shared_data / "reverse_l2_x070" / f"{name}.pth"
    checkpoint = model(name).checkpoint if name in MODELS else load(path)
    exact = ReferenceTarget(Fast(checkpoint, torch.float64))
    rounded = ReferenceTarget(ROUNDED[quantization](checkpoint))
    good = load_limits()[0][quantization].worst_good
    for seed in range(PROMPTS[quantization]):
        tokens = prompt(seed, checkpoint.shape.n_vocab)
        state = State.random(checkpoint.shape, seed, torch.float32).arrays()
        want, got = exact.run(tokens, state), rounded.run(tokens, state)
        distance = logits_distance(want.logits, got.logits, near_tie_nats=0.0)
        assert distance.kl_mean_nats <= good["kl_mean_nats"]
        assert distance.kl_worst_nats <= good["kl_worst_nats"]
        assert max(state_nmse(want.state, got.state).values()) <= good["state_nmse"]
