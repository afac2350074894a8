"""The suites catch what they are meant to catch, with the caps that ship; `make detection` tells the whole story."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.parity import any_tokens, narrowest
from reference.state import State
from runtime.binding import Dtype
from tests.detection.detect import caught_by_the_meant, detect, false_alarms
from tests.detection.engine import TorchEngine
from tests.detection.faults import FAULTS, PARITY
from tests.detection.formulas import Formulas
from tests.detection.good import GOOD, cases, model
from tests.detection.judge import CHECKS
from tests.detection.tool_faults import TOOL_FAULTS, judge

NAMED = {fault.name: fault for fault in FAULTS}

ONE_OF_EACH_SUITE = ("relu-dropped", "state-fp16", "state-of-another-session", "initial-state-transposed", "word-split")


@pytest.fixture(autouse=True)
def _one_thread():
    """The tensors are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ONE_OF_EACH_SUITE)
def test_one_of_each_suite(name):
    """The check that is meant for a fault fails, at the stage of numbers, in words that lead to it."""
    detection = caught_by_the_meant(NAMED[name])
    assert detection.caught, detection.findings


@pytest.mark.parametrize("fault", TOOL_FAULTS[1:], ids=lambda fault: fault.name)
def test_faults_of_tools(fault):
    """Of LAMBADA, the stopwatch and the cache: the test meant for a fault passes without it, and fails with it."""
    assert judge(None, *fault.meant) == ""
    assert judge(fault, *fault.meant)


def test_a_right_target_passes():
    """The recurrence with the rounding of F16."""
    (good,) = (good for good in GOOD if good.name == "recurrence, rounded as F16")
    assert false_alarms(good) == []


@pytest.mark.long
@pytest.mark.parametrize("good", GOOD, ids=lambda good: good.name)
def test_no_false_alarms(good):
    """Whatever computes what is right, in chunks of whatever length, passes."""
    assert false_alarms(good) == []


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault(fault):
    """Each is caught where its data say so, and not where they say not."""
    detection = detect(fault)
    assert detection.as_declared, detection


def test_faults_are_told_apart():
    """Each has a name of its own and a check that exists; what is wrong in decode alone fails in decode alone."""
    assert len(NAMED) == len(FAULTS)
    assert {fault.meant for fault in FAULTS} <= set(CHECKS)
    assert all(bool(fault.unseen) is (fault.model != "shipped") for fault in FAULTS)
    findings = caught_by_the_meant(replace(NAMED["decode-wrong"], meant=PARITY)).findings
    assert {finding.case for finding in findings} == {"decode-F16-chunk"}


def test_the_engine_computes_what_the_formulas_do():
    """A chunk through a session's requests is the forward pass itself, bit for bit."""
    checkpoint = model("shipped").checkpoint
    formulas = Formulas(checkpoint, None)
    (prefill_all,) = (case for case in cases() if case.graph.name == "prefill_all_16")
    engine = TorchEngine(checkpoint.shape, [prefill_all], {prefill_all.graph.kind: formulas})
    tokens = any_tokens(checkpoint.shape.n_vocab, 16)
    session = engine.request("", do="start", sizes_bytes=[0] * 3 * checkpoint.shape.n_layer).fields["session"]
    data = [np.asarray(tokens, "<i4").tobytes()]
    reply = engine.request("", data, do="run", session=session, net=prefill_all.graph.name)
    logits, after = formulas.forward(tokens, State.zeros(checkpoint.shape, torch.float32))
    assert reply.payloads[0] == logits.numpy().tobytes()
    assert all(np.array_equal(*pair) for pair in zip(engine.states[session].arrays(), after.arrays(), strict=True))


@pytest.mark.parametrize(
    ("keep", "dtype"),
    [(torch.Tensor.float, Dtype.F32), (torch.Tensor.half, Dtype.F16), (torch.Tensor.bfloat16, Dtype.BF16)],
)
def test_narrowest_type(keep, dtype):
    """The type that numbers were rounded to is told from the numbers, large and small ones."""
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for scale in (1e-3, 1.0, 100.0):
        assert narrowest(keep(values * scale).float().numpy()) is dtype


def test_any_tokens():
    """The first and the last of the vocabulary are among them, however few, and none outside."""
    assert any_tokens(257, 2) == [256, 0]
    assert len(any_tokens(10, 100)) == 100
    assert set(any_tokens(10, 100)) == set(range(10))
