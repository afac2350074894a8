"""LAMBADA as a check of the suites, on nets computed in torch."""

import math

import pytest
import torch

from compile.spec import GraphKind, Quantization
from harness.check import Check
from harness.checkpoints import open_model
from harness.lambada.pair import judge_documents
from harness.lambada.protocol import to_text
from harness.limits import load_limits
from harness.oracle import Oracles
from reference.fast import Fast
from tests.detection.engine import TorchEngine
from tests.detection.good import cases

MODEL = open_model(None)
LIMITS = load_limits()[0][Quantization.F16]
DECODE, PREFILL, _ = cases()
TEXTS = {
    str(i): to_text(f"The boat number {i} lay in the mud of the {place}, and nobody saw the boat", MODEL.codec)
    for i, place in enumerate(("river", "harbour", "old canal", "marsh"))
}


class Scaled(TorchEngine):
    """All logits are a tenth too large."""

    def launch(self, session, net, tokens):
        """As the nets, and then some."""
        logits, after = super().launch(session, net, tokens)
        return 1.1 * logits, after


class Broken(TorchEngine):
    """One logit is NaN."""

    def launch(self, session, net, tokens):
        """As the nets, but for one."""
        logits, after = super().launch(session, net, tokens)
        logits[:, 7] = torch.nan
        return logits, after


def judged(kind):
    """A check of all documents, by an engine of *kind*."""
    check = Check(limits=LIMITS)
    loaded = kind(MODEL.checkpoint.shape, [DECODE, PREFILL], dict.fromkeys(GraphKind, Fast(MODEL.checkpoint)))
    judge_documents(check, loaded, Oracles(MODEL.checkpoint).of(Quantization.F16), TEXTS)
    return check


def test_a_right_net():
    """Perplexity and accuracy are the reference's, and their ratio is 1 with an error that is nearly none."""
    metrics = judged(TorchEngine).metrics
    assert metrics["lambada_documents"] == 4
    assert metrics["lambada_perplexity"] == pytest.approx(metrics["lambada_reference_perplexity"], rel=1e-4)
    assert metrics["lambada_perplexity"] == pytest.approx(math.exp(-metrics["lambada_log_likelihood"]))
    assert metrics["lambada_accuracy"] == metrics["lambada_reference_accuracy"]
    assert metrics["lambada_perplexity_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert 0 <= metrics["lambada_perplexity_ratio_se"] < 1e-4


def test_wrong_nets():
    """What surely differs by more than its cap fails with the interval; what is not finite fails with the document."""
    with pytest.raises(AssertionError, match=r"differs from the reference's by [+-].*95% interval.*at most 0.01"):
        judged(Scaled)
    with pytest.raises(AssertionError, match=r"4 of 4 documents .* NaN or infinite"):
        judged(Broken)
