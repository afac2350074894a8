"""The adapter of sophon-sail, on a fake that records its calls and computes: see ``fake_sail``."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from compile.dims import Dims
from compile.export import export
from compile.graphs.model import Rwkv7
from harness.checkpoints import Model
from harness.targets.sail import SailTarget
from harness.targets.scorers import open_scorer
from harness.targets.torch import ReferenceTarget
from reference.naive import Naive
from reference.shape import LoraRanks, ModelShape
from reference.state import State
from reference.synthetic import synthetic
from runtime.faults import BadBmodel, DeviceError, LibraryMissing
from tests.fake_sail import FakeSail
from tokenizer.codec import Codec

SHAPE = ModelShape(
    n_layer=2, n_embd=128, head_size=64, n_ffn=128, n_vocab=41, ranks=LoraRanks(decay=8, rate=8, value=8, gate=8)
)
TOKENS = [5, 0, 40, 40, 17, 1, 8, 8, 3, 22, 9]
MODEL = Model(synthetic(SHAPE), Codec.PLAIN, None)
DIMS = Dims.of(MODEL.arrays)


@pytest.fixture(scope="module")
def bmodels(tmp_path_factory):
    """Decode and prefill_all of 4 tokens, as the fake reads them."""
    folder = tmp_path_factory.mktemp("bmodels")
    for name, T in (("decode", 1), ("prefill_all_4", 4)):
        export(Rwkv7(MODEL.arrays, T=T, every_position=True), folder / f"{name}.onnx")
    return [folder / "decode.onnx", folder / "prefill_all_4.onnx"]


@pytest.fixture
def install(monkeypatch):
    """Put a fake where ``sophon.sail`` is imported from."""

    def put(**options):
        fake = FakeSail(**options)
        monkeypatch.setitem(sys.modules, "sophon", ModuleType("sophon"))
        monkeypatch.setitem(sys.modules, "sophon.sail", fake)
        return fake

    return put


every_interface = pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="llm-basic"),
        pytest.param({"addr_mode": 1}, id="llm-io-alone"),
        pytest.param({"has_llm": False}, id="engine"),
        pytest.param({"has_llm": False, "addr_mode": 4}, id="engine-io-reloc"),
    ],
)


@every_interface
def test_agrees_with_the_reference(install, bmodels, options):
    """Logits and state, over chunks and tail, from a state that is not zero; a second run forgets the first."""
    install(**options)
    target = SailTarget(bmodels, DIMS)
    assert target.version == f"3.10.7 {'EngineLLM' if options.get('has_llm', True) else 'Engine'}"
    state = State.random(SHAPE, 1, torch.float32).arrays()
    for before in (state, None, state):
        want = ReferenceTarget(Naive(MODEL.checkpoint)).run(TOKENS, before)
        got = target.run(TOKENS, before)
        assert got.positions == want.positions
        assert abs(got.logits - want.logits).max() <= 2e-5 * abs(want.logits).max()
        for got_array, want_array in zip(got.state, want.state, strict=True):
            assert got_array.shape == want_array.shape
            assert abs(got_array - want_array).max() <= 2e-5 * max(1.0, abs(want_array).max())


@every_interface
def test_state_stays_on_the_device(install, bmodels, options):
    """Between the calls only tokens go to the board and only logits come back, each copied at the right moment."""
    fake = install(**options)
    target = SailTarget(bmodels, DIMS)
    fake.calls.clear()
    before = [id(tensor) for tensor in target._current]
    target.run(TOKENS)
    names = [call[0] for call in fake.calls]
    states = 3 * DIMS.L
    one = ["update_data", "sync_s2d", "process", "sync_d2s", "asnumpy"]
    assert names == ["update_data", "sync_s2d"] * states + one * 5 + ["sync_d2s"] * states + ["asnumpy"] * states
    assert [call[1] for call in fake.calls if call[0] == "process"] == ["prefill_all_4"] * 2 + ["decode"] * 3
    between = fake.calls[2 * states : -2 * states]
    assert {tuple(call[1].shape()) for call in between if call[0] != "process"} == {
        (1, 1), (1, 4), (1, 1, DIMS.V), (1, 4, DIMS.V)
    }  # fmt: skip
    after = [id(tensor) for tensor in target._current]
    assert (before == after) is (not options)  # in place where that is safe; five calls, an odd number, elsewhere
    assert all(tensor.system is None for tensor in [*target._current, *target._spare])


def test_the_fake_sees_a_hazard(install, bmodels):
    """Beyond addr_mode 0 a state that is input and output at once would be lost: the tests above are able to fail."""
    install(addr_mode=3)
    target = SailTarget(bmodels, DIMS)
    for graph in target._graphs.values():
        graph.is_basic = True
    assert np.isnan(target.run(TOKENS).logits).any()


def test_failures(install, bmodels):
    """A status, a graph of another model, and tokens that are none are told apart."""
    install(status=3010)
    with pytest.raises(DeviceError, match="returned 3010"):
        SailTarget(bmodels, DIMS).run(TOKENS)
    install()
    with pytest.raises(BadBmodel, match=r"prefill_all_4.*expected inputs"):
        SailTarget(bmodels[1:], Dims(L=3, C=128, H=2, N=64, V=41))
    for wrong in ([], [41], [-1]):
        with pytest.raises(ValueError, match=r"expected at least one token|outside the vocabulary"):
            SailTarget(bmodels, DIMS).run(wrong)


@pytest.mark.parametrize("name", ["sail", "sail:1"])
def test_absent(monkeypatch, name):
    """Without sophon-sail the target says what that is and how to get it, before anything is compiled."""
    monkeypatch.setitem(sys.modules, "sophon", None)
    with pytest.raises(LibraryMissing, match="ONLY_RUNTIME=ON"), open_scorer(name, MODEL):
        pass


def test_the_package_of_the_same_name(monkeypatch):
    """A package ``sophon`` without ``sail`` is not taken for it."""
    monkeypatch.setitem(sys.modules, "sophon", ModuleType("sophon"))
    monkeypatch.delitem(sys.modules, "sophon.sail", raising=False)
    with pytest.raises(LibraryMissing, match="something else"):
        SailTarget([], DIMS)
