"""What is a board's alone, on libraries that are taken for a board's: the canary with its time, doctor, first contact.

What a chip would do nobody here can say; these libraries only keep the vendor's interface.
"""

import json
import shutil
from pathlib import Path

import pytest

from harness.checkpoints import open_model
from harness.device import quarantine
from harness.device.board import locate_board
from harness.device.first_contact import Contact, run_first_contact
from harness.device.guard import Guard
from harness.device.place import place_of
from harness.device.probe import ProbeError, Step, probe
from harness.doctor import Health, Scope, examine
from reports.schema import Outcome
from tests.device_trees import PCIE, write_tree
from tests.fake_canary import fake_canary
from tests.fake_libsophon.build import build_libraries

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler named cc")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """The fake libraries, compiled."""
    return build_libraries(tmp_path_factory.mktemp("libsophon") / "lib")


@pytest.fixture
def board(libraries, tmp_path, monkeypatch):
    """A board that is not simulated, with locks and cache of the test's own."""
    monkeypatch.setenv("RWKV_TPU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.device.lock.MACHINE_WIDE", tmp_path)
    return locate_board(0, libraries, write_tree(tmp_path / "root", PCIE, ["bm-sophon0"], libraries=False))


@pytest.fixture
def canary(board, tmp_path):
    """A canary whose known answer is what the fake net computes."""
    return fake_canary(board, tmp_path)


def test_a_healthy_board(board, canary):
    """The canary passes again and again, its time is kept, and the record is a board's."""
    guard = Guard(place_of(board), lambda: canary)
    for _ in range(2):
        record = guard.check("before the first case")
        assert record.outcome is Outcome.PASSED, record.message
        assert record.metrics["canary_step_ms"] > 0
        assert (record.target, record.runtime["kind"]) == ("0", "board")
    assert guard.sick is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"sha256": "0" * 64}, "not bit for bit"), ({"step_ms": 1e-9}, "ms a step, but should take at most 3 times")],
)
def test_a_sick_board(board, canary, changes, message):
    """Other bits, or much more time, than in the first good run: quarantine."""
    place = place_of(board)
    Guard(place, lambda: canary).check("at first")
    file = place.state_folder / "canary.json"
    file.write_text(json.dumps({key: known | changes for key, known in json.loads(file.read_text()).items()}))
    guard = Guard(place, lambda: canary)
    record = guard.check("later")
    assert record.outcome is Outcome.INFRA
    assert message in record.message
    assert "bm-smi --dev=0x0 --recovery" in guard.sick
    assert message in quarantine.look(place.state_folder).reason


def test_a_wrong_answer(board, canary):
    """Far from the reference's: wrong at once, without any answer known before."""
    canary.want.logits[3] = -canary.want.logits[3]
    guard = Guard(place_of(board), lambda: canary)
    assert "the canary's answer is wrong: kl_" in guard.check("before the first case").message


def test_first_contact(board, tmp_path):
    """All that needs no bmodel of ours goes as expected on libraries that are not the simulator's."""
    contact = Contact(number=0, libsophon=None, toolchain=None, model=open_model(None), say=lambda _: None, found=board)
    contact.bmodel = lambda *_: Path("/dev/null")
    contact.toolchain = type("Toolchain", (), {"compiler_commit": "none"})
    outcome = run_first_contact(contact, tmp_path / "out")
    steps = [json.loads(line) for line in (outcome.folder / "steps.jsonl").read_text().splitlines()]
    assert outcome.failed == "load-bmodel", steps[-1]
    assert [step["step"] for step in steps[:-1]] == ["find", "compile", "load", "versions", "open", "chip", "memory"]
    assert {step["target"] for step in steps} == {"0"}
    assert "BadBmodel" in steps[-1]["error"]


def test_functions_that_are_missing(tmp_path, monkeypatch):
    """An old libsophon lacks some: named by doctor before any device is opened."""
    monkeypatch.setenv("RWKV_TPU_CACHE", str(tmp_path / "cache"))
    folder = build_libraries(tmp_path / "old", without=("bmrt_get_flags",))
    root = write_tree(tmp_path / "root", PCIE, ["bm-sophon0"], libraries=False)
    found = {f.what: f for f in examine(Scope(device=0, libsophon=folder, root=root)) if f.section == "libsophon"}
    assert found["libraries"].health is Health.OK
    assert found["functions"].health is Health.BROKEN
    assert found["functions"].stops
    assert "bmrt_get_flags" in found["functions"].detail


def test_a_device_that_is_not_there(libraries):
    """It is not even asked for; how far it went is told."""
    with pytest.raises(ProbeError, match=r"there is no device 99: the library counts \d+(.|\n)*well went: load"):
        probe(libraries, 99, Step.OPEN)
