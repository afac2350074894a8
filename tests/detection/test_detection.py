"""The suites catch what they are meant to catch, with the caps that ship; `make detection` tells the whole story."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.limits import LIMITS
from harness.parity import any_tokens, narrowest
from reference.state import State
from runtime.binding import Dtype
from tests.detection import bmodels, mutants
from tests.detection.__main__ import main
from tests.detection.bmodel_faults import BMODEL_FAULTS
from tests.detection.detect import caught_by_the_meant, detect, false_alarms, smallest
from tests.detection.engine import TorchEngine
from tests.detection.faults import FAULTS, PARITY
from tests.detection.formulas import Formulas
from tests.detection.good import GOOD, cases, model
from tests.detection.judge import CHECKS
from tests.detection.mutations import Kind
from tests.detection.sections import put
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


@pytest.mark.parametrize("name", ["relu-dropped", "padded-with-0"])
def test_a_bmodel(name, toolchain):
    """One that is wrong inside, and right ones that are fed wrongly."""
    (fault,) = (fault for fault in BMODEL_FAULTS if fault.name == name)
    assert bmodels.detect(fault, toolchain).caught


@pytest.mark.long
@pytest.mark.parametrize("fault", BMODEL_FAULTS, ids=lambda fault: f"{fault.name}-{fault.engine.__name__}")
def test_every_bmodel(fault, toolchain):
    """Each fails the check that is meant for it, and the right ones pass that."""
    assert bmodels.detect(fault, toolchain).caught
    for control in bmodels.controls((fault,)):
        assert bmodels.false_alarms(control, toolchain) == []


def test_mutants():
    """A few of each graph: the same every time, of every kind, caught or explained."""
    drawn = list(mutants.all_mutants(6))
    assert [mutant.what for mutant in mutants.all_mutants(6)] == [mutant.what for mutant in drawn]
    assert {mutant.kind for mutant in drawn} == {Kind.CONSTANT, Kind.EDGE}
    fates = [mutants.fate(mutant) for mutant in drawn]
    assert all(fate.explained for fate in fates)
    assert sum(fate.finding is not None for fate in fates) > len(fates) // 2


@pytest.mark.long
def test_every_mutant():
    """Caught, or explained."""
    assert [f.mutant.name for m in mutants.all_mutants() if not (f := mutants.fate(m)).explained] == []


def test_a_right_graph_survives():
    """The exported graph itself passes every check, and is equivalent to itself."""
    case = cases()[0]
    (mutant,) = list(mutants.mutants(case.graph.name, mutants.right(case)[0], 1))
    fate = mutants.fate(replace(mutant, model=mutants.right(case)[0]))
    assert fate.finding is None
    assert fate.survivor.identical


def test_loose_caps_let_faults_through(tmp_path, capsys):
    """The exit status is 0 with the caps that ship, and 1 with caps ten times as high."""
    loose = tmp_path / "limits.toml"
    # All of them, for a file with such caps alone is refused: it must claim that good runs are as bad.
    text = re.sub(r"kl_mean_nats = ([\d.e-]+)", lambda one: f"kl_mean_nats = {10 * float(one[1])}", LIMITS.read_text())
    loose.write_text(re.sub(r"times_emulated = [0-9.]+", "times_emulated = 1e6", text))
    only = ["--part", "targets", "--only", "decay-off"]
    assert main(only) == 0
    assert capsys.readouterr().out.endswith("caught 1 of 1, false alarms 0 of 0\n")
    assert main([*only, "--limits", str(loose)]) == 1
    assert capsys.readouterr().out.endswith("not as declared: decay-off\ncaught 0 of 1, false alarms 0 of 0\n")


def test_smallest():
    """A fault is seen at the magnitude found, and not at half of it."""
    fault = NAMED["head-truncated"]
    assert smallest(fault) == 1
    assert smallest(NAMED["logits-scaled"]) == pytest.approx(0.008, rel=0.3)


def test_parts_of_the_page():
    """A part takes its own place, whatever was there before."""
    page = put("", "mutants", "m")
    page = put(page, "targets", "t")
    assert put(page, "mutants", "n") == "<!-- part: targets -->\nt\n\n<!-- part: mutants -->\nn\n"
    assert put("an old page", "targets", "t") == "<!-- part: targets -->\nt\n"


def test_faults_are_told_apart():
    """Each has a name of its own and a check that exists; what is wrong in decode alone fails in decode alone."""
    assert len(NAMED) == len(FAULTS)
    assert {fault.meant for fault in FAULTS} <= set(CHECKS)
    assert {fault.meant for fault in BMODEL_FAULTS} <= set(CHECKS)
    assert sum(fault.compiled for fault in BMODEL_FAULTS) >= 20
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
