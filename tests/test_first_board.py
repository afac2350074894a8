"""``rwkv-tpu first-board``: every step on a stand-in, a stop at the first surprise, and no names in what is sent."""

import getpass
import json
import socket
import tarfile
from pathlib import Path

import pytest

from harness.checkpoints import open_model
from harness.device import first_contact
from harness.device.first_contact import STEPS, Contact, redact, run_first_contact
from harness.device.lock import BoardBusyError, BoardLock
from harness.device.probe import ProbeError, Step, probe
from harness.device.stand_in import make_stand_in

LABEL = "simulator (stand-in for board 0)"


def steps_of(folder):
    """The lines that the steps left."""
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


@pytest.fixture
def contact(toolchain, tmp_path):
    """A first contact with a stand-in; compiling is the toolchain's own test."""
    make_stand_in(tmp_path / "stand-in", toolchain.libraries)
    return Contact(
        number=0, libsophon=tmp_path / "stand-in", toolchain=toolchain, model=open_model(None), say=lambda _: None
    )


@pytest.mark.toolchain
def test_without_a_surprise(contact, tmp_path):
    """Every step goes as expected, says that it is the simulator, and gives no time; the archive holds all of it."""
    outcome = run_first_contact(contact, tmp_path / "out")
    steps = steps_of(outcome.folder)
    assert outcome.failed is None, steps[-1]
    assert [step["step"] for step in steps] == [name for name, _, _ in STEPS]
    assert {step["outcome"] for step in steps} == {"as expected"}
    assert {step["target"] for step in steps} == {LABEL}
    assert "median_ms" not in (outcome.folder / "steps.jsonl").read_text()
    environment = json.loads((outcome.folder / "environment.json").read_text())
    assert environment["target"] == LABEL
    with tarfile.open(outcome.archive) as tar:
        assert {"out/steps.jsonl", "out/log.txt", "out/environment.json"} <= set(tar.getnames())
        assert {member.uname for member in tar} == {""}
        text = b"".join(tar.extractfile(member).read() for member in tar if member.isfile()).decode()
    if len(socket.gethostname()) > 2:
        assert socket.gethostname() not in text
    if getpass.getuser() != "root":
        assert getpass.getuser() not in text


@pytest.mark.toolchain
def test_a_surprise_stops_it(contact, tmp_path, monkeypatch):
    """The chip says that it is another one: that step is the last, and its error is in the archive."""
    monkeypatch.setattr(first_contact, "BM1684X", "0x1684")
    outcome = run_first_contact(contact, tmp_path / "out")
    assert outcome.failed == "chip"
    steps = steps_of(outcome.folder)
    assert [step["outcome"] for step in steps[:-1]] == ["as expected"] * (len(steps) - 1)
    assert (steps[-1]["step"], steps[-1]["outcome"]) == ("chip", "surprise")
    assert "expected the chip id of a BM1684X, 0x1684, found 0x1686" in steps[-1]["error"]
    assert outcome.archive.is_file()


@pytest.mark.toolchain
def test_libraries_that_do_not_load(contact, tmp_path):
    """What the loader said is the surprise, before any device is opened."""
    for name in ("libbmrt.so.1.0", "libbmrt.so"):
        link = tmp_path / "stand-in" / "lib" / name
        link.unlink()
        link.write_bytes(b"\x7fELF and no more")
    outcome = run_first_contact(contact, tmp_path / "out")
    assert outcome.failed == "load"
    assert "do not load" in steps_of(outcome.folder)[-1]["error"]


@pytest.mark.toolchain
def test_a_board_in_use(contact, tmp_path):
    """Nothing is tried on a board that somebody works with."""
    with BoardLock(contact.board.name), pytest.raises(BoardBusyError):
        run_first_contact(contact, tmp_path / "out")
    assert [step["step"] for step in steps_of(tmp_path / "out")] == ["find"]


def test_no_board_at_all(tmp_path):
    """The first step says what was looked for."""
    contact = Contact(number=0, libsophon=tmp_path / "nowhere", toolchain=None, model=None, say=lambda _: None)
    outcome = run_first_contact(contact, tmp_path / "out")
    assert outcome.failed == "find"
    (step,) = steps_of(outcome.folder)
    assert "NoBoardError" in step["error"]
    assert step["target"] == "board 0, not found"


def test_a_probe_of_nothing(tmp_path):
    """Libraries that are not there end the probe's process, not ours, with the reason."""
    with pytest.raises(ProbeError, match=r"do not load(.|\n)*well went: nothing"):
        probe(tmp_path, 0, Step.LOAD)


def test_names_are_left_out(monkeypatch):
    """Those of the user and the machine, wherever they stand in a text, but not inside other words."""
    monkeypatch.setattr(first_contact.socket, "gethostname", lambda: "gizmo")
    monkeypatch.setattr(first_contact.getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(first_contact.Path, "home", lambda: Path("/home/ada"))
    text = redact("/home/ada/x on gizmo by ada; /home/bob/y; adamant gizmos at ada@gizmo")
    assert text == "~/x on <host> by <user>; /home/<user>/y; adamant gizmos at <user>@<host>"
