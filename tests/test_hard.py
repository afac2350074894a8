"""Hard models, greedy streams, drift and refusals, on nets computed in torch: right ones pass, wrong ones are named."""

import numpy as np
import pytest
import torch

from compile.spec import GraphKind, Quantization
from harness.cases import Case
from harness.check import Check
from harness.checkpoints import open_model
from harness.drift import judge_drift
from harness.greedy import decode_greedily, judge_stream
from harness.hard import hard, planted_tensors
from harness.limits import load_limits
from harness.oracle import Oracles
from harness.parity import judge_from_random_state, judge_from_zero_state, judge_one_token_repeated
from harness.prompts import prompt
from harness.robustness import judge_refusals
from reference.emulated import Emulated
from reference.fast import Fast
from reference.precision import Precision
from reference.state import State
from runtime.session import Session
from tests.detection.engine import TorchEngine
from tests.detection.good import cases

MODEL = open_model(None)
LIMITS = load_limits()[0][Quantization.F16]
DECODE, PREFILL, PREFILL_ALL = cases()


def engine(model, *loaded: Case, computes=None):
    """An engine of right nets, or of what *computes* makes."""
    made = (computes or Fast)(model.checkpoint)
    return TorchEngine(model.checkpoint.shape, loaded, dict.fromkeys(GraphKind, made))


def test_what_is_planted():
    """Decays, rates, channel-mix and norm of every layer, and nothing else; the model itself is as it was."""
    made = hard(MODEL)
    named = {name.split(".", 2)[2] for name in planted_tensors(made.checkpoint, MODEL.checkpoint)}
    assert named == {"att.w0", "att.a0", "ffn.key.weight", "ffn.value.weight", "ln1.weight"}
    assert made.checkpoint.sha256 == hard(MODEL).checkpoint.sha256 != MODEL.checkpoint.sha256
    assert (made.questions, made.tuned, MODEL.checkpoint.name) == ((), None, "tiny")
    w0 = made.checkpoint.tensors["blocks.0.att.w0"].view(-1)
    assert (w0[0::2] - w0[1::2]).mean() > 6


@pytest.mark.parametrize("precision", [None, Precision.F16])
def test_right_nets_pass_hard_inputs(precision):
    """What computes right, in float32 or with the rounding of F16, passes with the caps that ship."""
    made = hard(MODEL)
    oracle = Oracles(made.checkpoint).of(Quantization.F16)
    state = State.random(made.checkpoint.shape, seed=0, dtype=torch.float32).arrays()
    computes = Fast if precision is None else lambda checkpoint: Emulated(checkpoint, precision)
    loaded = engine(made, PREFILL_ALL, computes=computes)
    for judge in (judge_from_random_state, judge_one_token_repeated):
        judge(Check(limits=LIMITS), loaded, PREFILL_ALL, made, oracle, state)
    judge_from_zero_state(Check(limits=LIMITS), loaded, PREFILL_ALL, made, oracle)


def test_the_plain_model_is_not_the_hard_one():
    """A net of the model without what was planted fails: the check judges the right bmodel."""
    made = hard(MODEL)
    oracle = Oracles(made.checkpoint).of(Quantization.F16)
    with pytest.raises(AssertionError, match="kl_mean_nats"):
        judge_from_zero_state(Check(limits=LIMITS), engine(MODEL, PREFILL_ALL), PREFILL_ALL, made, oracle)


def test_greedy_streams():
    """The stream of a right net is the reference's; with one token replaced, place and distance are told."""
    oracle, asked = Oracles(MODEL.checkpoint).of(Quantization.F16), prompt(MODEL, 19, seed=8)
    with Session(engine(MODEL, PREFILL, DECODE)) as session:
        stream = decode_greedily(session, asked, count=12)
    check = Check(limits=LIMITS)
    judge_stream(check, oracle, asked, stream)
    assert (check.metrics["greedy_tokens"], check.metrics["greedy_near_ties"]) == (12, 0)
    stream[5] = (stream[5] + 1) % 257
    with pytest.raises(AssertionError, match=r"token 5 of the stream, [\d.]+ nats behind the reference's"):
        judge_stream(Check(limits=LIMITS), oracle, asked, stream)


def test_near_ties_of_streams():
    """The second best is right where the reference holds it for as likely, and wrong where it does not."""
    oracle, asked = Oracles(MODEL.checkpoint).of(Quantization.F16), prompt(MODEL, 19, seed=8)
    logits = oracle.run(asked).logits[-1]
    best, second = np.argsort(logits)[::-1][:2]
    gap = logits[best] - logits[second]

    class Wide(Check):
        near_tie_nats = gap * 1.01

    check = Wide(limits=LIMITS)
    judge_stream(check, oracle, asked, [int(second)])
    assert check.metrics["greedy_near_ties"] == 1
    Wide.near_tie_nats = gap * 0.99
    with pytest.raises(AssertionError, match="token 0 of the stream"):
        judge_stream(Wide(limits=LIMITS), oracle, asked, [int(second)])


class Drifts(TorchEngine):
    """Adds a little to the state at each call."""

    def launch(self, session, net, tokens):
        """As the nets, and then some."""
        logits, after = super().launch(session, net, tokens)
        after.wkv[:] *= 1.05
        return logits, after


def test_drift():
    """The curve is kept, a right net stays where it began, and one that wanders fails late."""
    oracle = Oracles(MODEL.checkpoint).of(Quantization.F16)
    check = Check(limits=LIMITS)
    judge_drift(check, engine(MODEL, PREFILL_ALL), PREFILL_ALL, MODEL, oracle, tokens=90)
    assert list(check.kl_by_position) == list(range(96))
    assert 0 <= check.metrics["drift_first_kl_mean_nats"] < 1e-9
    assert 0 <= check.metrics["drift_last_kl_mean_nats"] < 1e-9
    wrong = Drifts(MODEL.checkpoint.shape, [PREFILL_ALL], dict.fromkeys(GraphKind, Fast(MODEL.checkpoint)))
    with pytest.raises(AssertionError, match="should be <="):
        judge_drift(Check(limits=LIMITS), wrong, PREFILL_ALL, MODEL, oracle, tokens=90)


def test_refusals():
    """What is not refused, or in other words than it should be, fails."""

    def refuses():
        raise ValueError("expected at least one token")

    check = Check(limits=LIMITS)
    judge_refusals(check, refuses, "at least one")
    assert check.metrics["refusals"] == 1
    with pytest.raises(AssertionError, match="got nothing at all"):
        judge_refusals(check, lambda: None, "at least one")
    with pytest.raises(AssertionError, match="got expected at least one token, but should be ValueError: out of range"):
        judge_refusals(check, refuses, "out of range")
