"""``rwkv-tpu doctor``: each thing that can be wrong is named, with what to do next, and decides the exit code."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cli import main
from harness.device import quarantine
from harness.device.board import locate_board
from harness.device.lock import BoardLock
from harness.device.place import place_of, state_folder
from harness.device.remote.address import RemoteAddress
from harness.device.stand_in import make_stand_in
from harness.doctor import Health, Scope, _canary, examine
from tests.device_trees import LIBRARIES, PCIE, write_tree
from tests.fake_canary import fake_canary
from tests.fake_libsophon.build import build_libraries

ROOT = Path(__file__).parent.parent


def rwkv_tpu(*arguments, **environment):
    """Run the command in a process of its own."""
    command = [sys.executable, "-c", "from harness.cli import main; main()", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environment}, timeout=300
    )


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache folder without any toolchain."""
    monkeypatch.setenv("RWKV_TPU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def by_name(scope):
    """What is found, by section and name."""
    return {(finding.section, finding.what): finding for finding in examine(scope)}


@pytest.mark.toolchain
@pytest.mark.usefixtures("toolchain")
def test_a_healthy_machine():
    """With a toolchain all that is needed works, the simulator opens, and a board is not needed."""
    done = rwkv_tpu("doctor")
    assert done.returncode == 0, done.stdout
    assert "everything that is needed works" in done.stdout
    assert "chip 0x1686" in done.stdout
    assert "none; the simulator needs none" in done.stdout or "board 0" in done.stdout


def test_no_toolchain(empty_cache):
    """It is missing, needed, and the command to get it is there; the exit code says it too."""
    done = rwkv_tpu("doctor")
    assert done.returncode == 1
    assert f"missing TPU-MLIR 1.30.2: not in {empty_cache}" in done.stdout
    assert "-> rwkv-tpu toolchain install 1.30.2" in done.stdout
    assert "needed, and not well: " in done.stdout.splitlines()[-1]


def test_json(empty_cache):
    """The same for a program."""
    done = rwkv_tpu("doctor", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["well"] is False
    assert {"project", "compiler", "simulator", "libsophon", "driver", "boards"} == {
        finding["section"] for finding in told["findings"]
    }
    assert str(empty_cache) in done.stdout


def test_a_half_made_toolchain(empty_cache):
    """An install that was killed is told from one that is whole."""
    (empty_cache / "toolchains" / "1.30.2-abc").mkdir(parents=True)
    found = [finding for finding in examine(Scope()) if finding.what == "TPU-MLIR 1.30.2"]
    assert {finding.health for finding in found} == {Health.MISSING, Health.BROKEN}
    assert any("half-made" in finding.detail for finding in found)


@pytest.mark.usefixtures("empty_cache")
def test_a_broken_libsophon(tmp_path):
    """Libraries that do not load are broken; that stops those who need a board, and nobody else."""
    root = write_tree(tmp_path / "root", PCIE, ["bm-sophon1"])
    for device in (1, None):
        found = by_name(Scope(device=device, root=root))
        libraries = found["libsophon", "libraries"]
        assert libraries.health is Health.BROKEN
        assert "do not load" in libraries.detail
        assert libraries.stops is (device is not None)
        assert found["boards", "board 1 driver"].detail.startswith("release version:0.5.1")


@pytest.mark.usefixtures("empty_cache")
def test_no_libsophon(tmp_path):
    """Nothing of a board is there: missing, and in nobody's way until a board is asked for."""
    found = by_name(Scope(root=tmp_path))
    assert found["libsophon", "libraries"].health is Health.MISSING
    assert str(tmp_path / LIBRARIES) in found["libsophon", "libraries"].detail
    assert not found["driver", "device nodes"].stops
    assert by_name(Scope(root=tmp_path, device=0))["driver", "device nodes"].stops


@pytest.mark.usefixtures("empty_cache")
def test_an_old_driver(tmp_path):
    """Old ones are known to give garbled text: the date that the driver tells decides."""
    old = PCIE | {"proc/bmsophon/driver_version": "release version:0.4.9   release date: 20231231-235959\n"}
    found = by_name(Scope(root=write_tree(tmp_path / "old", old, ["bm-sophon1"])))
    assert "built 20231231" in found["driver", "age"].detail
    assert ("driver", "age") not in by_name(Scope(root=write_tree(tmp_path / "new", PCIE, ["bm-sophon1"])))


@pytest.mark.usefixtures("empty_cache")
def test_locks_and_quarantines(tmp_path, monkeypatch):
    """Who holds a board, and what it is in quarantine for, with the way out."""
    monkeypatch.setattr("harness.device.lock.MACHINE_WIDE", tmp_path)
    root = write_tree(tmp_path / "root", PCIE, ["bm-sophon1"])
    board = locate_board(1, root=root)
    quarantine.put(place_of(board).state_folder, "it smells")
    with BoardLock(board.name):
        found = by_name(Scope(device=1, root=root))
    assert f"held by process {os.getpid()}" in found["boards", "board 1 lock"].detail
    in_quarantine = found["boards", "board 1 quarantine"]
    assert in_quarantine.stops
    assert "it smells" in in_quarantine.detail
    assert "bm-smi --dev=0x1 --recovery" in in_quarantine.next
    assert "rwkv-tpu doctor --lift 1" in in_quarantine.next


def test_lifting_a_quarantine(empty_cache, tmp_path):
    """It ends the quarantine, and with the option the known answer of the canary."""
    simulator = tmp_path / "lib"
    simulator.mkdir()
    for name in ("libbmlib_bm1684x.so.0", "libbmrt.so.1.0", "libcmodel_bm1684x.so"):
        (simulator / name).write_bytes(b"libcmodel.so")
    stand_in = tmp_path / "stand-in"
    make_stand_in(stand_in, simulator)
    state = place_of(locate_board(0, stand_in)).state_folder
    assert state.is_relative_to(empty_cache)
    quarantine.put(state, "it smells")
    (state / "canary.json").write_text("{}")
    done = rwkv_tpu("doctor", "--lift", "0", "--libsophon", str(stand_in))
    assert (done.returncode, done.stdout) == (0, "board 0: free again; it was in for: it smells\n")
    assert (state / "canary.json").exists()
    done = rwkv_tpu("doctor", "--lift", "0", "--libsophon", str(stand_in), "--forget-answer")
    assert "was not in quarantine" in done.stdout
    assert not (state / "canary.json").exists()


def test_lifting_the_quarantine_of_a_distant_board(empty_cache):
    """By the same address as in the run, and without asking that machine, which may be down."""
    address = RemoteAddress.parse("ssh://me@far-away.invalid/0?libsophon=/a%20folder")
    state = state_folder(address.name)
    assert state.is_relative_to(empty_cache)
    quarantine.put(state, "it smells")
    (state / "canary.json").write_text("{}")
    for other in ("ssh://me@far-away.invalid/0", "ssh://me@far-away.invalid/1?libsophon=/a%20folder"):
        assert "was not in quarantine" in rwkv_tpu("doctor", "--lift", other).stdout
    done = rwkv_tpu("doctor", "--lift", str(address), "--forget-answer")
    assert (done.returncode, done.stdout) == (0, f"board {address}: free again; it was in for: it smells\n")
    assert quarantine.look(state) is None
    assert not (state / "canary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--lift", "ssh://me:secret@host/0"], 1, "the address holds a password"),
        (["--lift", "board"], 2, "should be the number of a board"),
        (["--lift", "-1"], 2, "should be the number of a board"),
        (["--lift", "ssh://host/0", "--libsophon", "x"], 2, "?libsophon=/DIR behind it"),
    ],
)
def test_boards_that_cannot_be_lifted(monkeypatch, capsys, arguments, code, message):
    """Whatever names no board is wrong use, and a password is not repeated."""
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "doctor", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == code
    out, err = capsys.readouterr()
    assert message in " ".join(err.replace("│", " ").split())
    assert "secret" not in out + err


@pytest.mark.toolchain
def test_examining_deeply(toolchain, monkeypatch):
    """The tiny model is run on the simulator and judged; the compilers' own check is its own test."""
    monkeypatch.setattr("harness.doctor.toolchains.check", lambda _: [])
    found = by_name(Scope(deep=True))
    ran = found["simulator", "runs a model"]
    assert (ran.health, ran.needed) == (Health.OK, True)
    assert re.fullmatch(r"as the reference does, worst KL \d\.\de-\d\d nats", ran.detail)
    assert found["compiler", f"TPU-MLIR {toolchain.version}"].detail.endswith("whole, and compiles")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler named cc")
@pytest.mark.parametrize(
    ("spoil", "detail"),
    [
        (lambda canary: canary.want.logits.__imul__(-1), "kl_"),
        (lambda canary: canary.bmodel.path.write_bytes(b"no bmodel"), "is no bmodel"),
    ],
)
@pytest.mark.usefixtures("empty_cache")
def test_examining_deeply_what_is_broken(tmp_path, monkeypatch, spoil, detail):
    """A model that gives other numbers, or does not load, is needed and broken."""
    libraries = build_libraries(tmp_path / "lib")
    board = locate_board(0, libraries, write_tree(tmp_path / "root", PCIE, ["bm-sophon0"], libraries=False))
    canary = fake_canary(board, tmp_path)
    monkeypatch.setattr("harness.device.canary.make_canary", lambda _: canary)
    monkeypatch.setattr("harness.device.place.open_place", lambda *_: place_of(board))
    assert _canary(SimpleNamespace(libraries=libraries)).health is Health.OK
    spoil(canary)
    found = _canary(SimpleNamespace(libraries=libraries))
    assert found.stops
    assert detail in found.detail
