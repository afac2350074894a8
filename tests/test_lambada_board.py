"""LAMBADA on a board: locked, its canary asked before and after, and never a document kept that a sick board scored."""

import json
import os
import shutil
import signal
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import msgspec
import pytest

from compile.export import export
from compile.spec import GraphKind
from harness.cli import main
from harness.device import quarantine
from harness.device.board import locate_board
from harness.device.lock import BoardLock
from harness.device.place import place_of
from harness.device.stand_in import make_stand_in
from harness.lambada import documents
from harness.lambada.results import BoardCheck, Line, read
from harness.targets.bmodel import BmodelScorer
from tests.device_trees import PCIE, write_tree
from tests.fake_canary import FakeBmodel, fake_canary
from tests.fake_libsophon.build import FakeModel, build_libraries, write_bmodel
from tests.fake_sail import FakeSail

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler named cc")


@pytest.fixture
def rwkv_tpu(monkeypatch, capsys, tmp_path, shared_data):
    """Run the command in this process, its results in a folder of this test: exit code, stdout, stderr."""

    def run(*arguments, limit=4):
        every = ["--runs", tmp_path / "runs", "--data", shared_data / "lambada" / documents.FILE_NAME]
        words = ["rwkv-tpu", "lambada", *every, "--limit", limit, *arguments]
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return run


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """The fake libraries, compiled."""
    return build_libraries(tmp_path_factory.mktemp("libsophon") / "lib")


@pytest.fixture
def board(libraries, tmp_path, monkeypatch):
    """A board that is not simulated, with a compiler that gives it nets at once; locks and cache are the test's own."""
    monkeypatch.setenv("RWKV_TPU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.device.lock.MACHINE_WIDE", tmp_path)
    root = write_tree(tmp_path / "root", PCIE, ["bm-sophon0"], libraries=False)
    find_there = partial(locate_board, root=root)
    monkeypatch.setattr("harness.device.place.locate_board", find_there)
    monkeypatch.setattr("harness.targets.scorers.locate_board", find_there)
    board = locate_board(0, libraries, root)
    canary = fake_canary(board, tmp_path)
    monkeypatch.setattr("harness.device.watch.make_canary", lambda *_, **__: canary)
    toolchain = SimpleNamespace(libraries=libraries, compiler_commit="none", identity="none", version="1.30.2")
    monkeypatch.setattr("harness.targets.scorers.find", lambda *_: toolchain)

    def compiled(job, *_, **__):
        name = f"{job.spec.kind.value}-{job.spec.T}"
        path = tmp_path / f"{name}.bmodel"
        if job.spec.kind is GraphKind.PREFILL_ALL or "sophon" in sys.modules:  # the fake sail's are ONNX files
            path = path.with_suffix(".onnx")
            export(job.variant(job.arrays, T=job.spec.T, every_position=True), path)
        else:
            write_bmodel(path, FakeModel().whole(job.spec.T))
        return FakeBmodel(path, name)

    monkeypatch.setattr("harness.targets.scorers.compile_graph", compiled)
    return board


@pytest.fixture
def sour(board):
    """Make the canary's known answer another one than what the board gives."""

    def spoil(sha256="0" * 64):
        file = place_of(board).state_folder / "canary.json"
        known = json.loads(file.read_text())
        file.write_text(json.dumps({key: entry | {"sha256": sha256} for key, entry in known.items()}))

    return spoil


def checks(path):
    """What the results file says of the board."""
    lines = [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]
    return [line for line in lines if isinstance(line, BoardCheck)]


def results_file(tmp_path):
    """The one results file."""
    (path,) = (tmp_path / "runs" / "lambada").glob("*.jsonl")
    return path


@needs_cc
def test_a_board(rwkv_tpu, board, libraries, tmp_path):
    """It is held while it computes, and free afterwards; canary and health of both ends stand in the results."""
    held = []
    score = BmodelScorer.score

    def watching(self, *arguments):
        held.append(BoardLock(board.name).held())
        return score(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BmodelScorer, "score", watching)
        code, out, err = rwkv_tpu("0", "--libsophon", libraries, "--chunk", 4)
    assert code == 0, err
    assert "BM1684X board 0, F16, prefill 4" in out
    assert held == [True] * 4
    assert not BoardLock(board.name).held()
    before, after = checks(results_file(tmp_path))
    assert (before.canary.check, after.canary.check) == ("canary before the first text", "canary after the last text")
    assert before.is_well
    assert after.is_well
    assert before.canary.metrics["canary_step_ms"] > 0
    assert len(read(results_file(tmp_path))[1]) == 4
    for check in (before, after):
        assert {reading.name for reading in check.health} >= {"chip_temperature", "driver"}
    code, out, err = rwkv_tpu("0", "--libsophon", libraries, "--chunk", 4, limit=6)
    assert code == 0, err
    assert "4 of 6 documents are in that file already" in out


@needs_cc
def test_a_busy_board(rwkv_tpu, board, libraries, tmp_path):
    """It is left alone, and its user is named; nothing is begun."""
    with BoardLock(board.name):
        code, out, err = rwkv_tpu("0", "--libsophon", libraries)
    assert code == 1
    assert f"error: board-0 is in use by process {os.getpid()}" in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "runs").exists()


@needs_cc
def test_a_sick_board(rwkv_tpu, board, sour, libraries, tmp_path):
    """Sick before the first document: quarantine, the way out of it, and what is in the results stays as it is."""
    assert rwkv_tpu("0", "--libsophon", libraries, limit=3)[0] == 0
    path = results_file(tmp_path)
    kept = path.read_bytes()
    sour()
    for attempt in ("the canary fails", "in quarantine"):
        code, _, err = rwkv_tpu("0", "--libsophon", libraries, limit=5)
        assert code == 1, attempt
        assert "error: INFRA, nothing was judged: 0 has been in quarantine since" in err
        assert "not bit for bit" in err
        assert "rwkv-tpu doctor --lift 0" in err
        assert "the same command goes on from there" in err
        assert path.read_bytes() == kept
        assert not BoardLock(board.name).held()
    state = place_of(board).state_folder
    quarantine.lift(state)
    (state / "canary.json").unlink()
    code, out, _ = rwkv_tpu("0", "--libsophon", libraries, limit=5)
    assert code == 0
    assert "3 of 5 documents are in that file already" in out


@needs_cc
def test_a_board_that_falls_sick(rwkv_tpu, board, sour, libraries, tmp_path):
    """The canary fails after the last document: those since the canary before are scored again, older ones are not."""
    assert rwkv_tpu("0", "--libsophon", libraries, limit=2)[0] == 0
    score = BmodelScorer.score

    def spoiling(self, *arguments):
        sour()
        return score(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BmodelScorer, "score", spoiling)
        code, out, err = rwkv_tpu("0", "--libsophon", libraries, limit=5)
    assert code == 1
    assert "INFRA, nothing was judged" in err
    assert "N 5, perplexity" not in out
    path = results_file(tmp_path)
    assert [check.is_well for check in checks(path)] == [True, True, True, False]
    kept = path.read_bytes()
    assert kept.count(b'"type":"document"') == 5
    state = place_of(board).state_folder
    quarantine.lift(state)
    (state / "canary.json").unlink()
    code, out, err = rwkv_tpu("0", "--libsophon", libraries, limit=5)
    assert code == 0, err
    assert "2 of 5 documents are in that file already" in out
    assert path.read_bytes().startswith(kept)
    assert len(read(path)[1]) == 5


@needs_cc
def test_a_death_on_a_healthy_board(rwkv_tpu, board, libraries, tmp_path):
    """The worker dies and the canary sings: the death is the error, and what was scored is kept."""
    score = BmodelScorer.score
    scored = []

    def dying(self, *arguments):
        scored.append(1)
        if len(scored) == 3:
            os.kill(self.engine._worker.pid, signal.SIGKILL)
        return score(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BmodelScorer, "score", dying)
        code, _, err = rwkv_tpu("0", "--libsophon", libraries)
    assert code == 1
    assert "error: " in err
    assert "killed by SIGKILL" in err
    assert checks(results_file(tmp_path))[-1].canary.check == "canary after a failure"
    assert quarantine.look(place_of(board).state_folder) is None
    code, out, _ = rwkv_tpu("0", "--libsophon", libraries)
    assert code == 0
    assert "2 of 4 documents are in that file already" in out


@needs_cc
def test_through_sail(rwkv_tpu, board, libraries, tmp_path, monkeypatch):
    """The same door: locked, a canary before and after; what fails in sail is a fault, and the canary is asked."""
    fake = FakeSail()
    monkeypatch.setitem(sys.modules, "sophon", ModuleType("sophon"))
    monkeypatch.setitem(sys.modules, "sophon.sail", fake)
    code, out, err = rwkv_tpu("sail:0", "--libsophon", libraries, "--chunk", 4)
    assert code == 0, err
    assert "BM1684X board 0 through sophon-sail 3.10.7" in out
    assert [check.is_well for check in checks(results_file(tmp_path))] == [True, True]
    with BoardLock(board.name):
        code, _, err = rwkv_tpu("sail", "--libsophon", libraries, "--chunk", 4)
    assert (code, "is in use by process" in err) == (1, True)

    def failing(*_):
        raise RuntimeError("bmrt failed")

    monkeypatch.setattr(fake.EngineLLM, "process", failing)
    code, _, err = rwkv_tpu("sail:0", "--libsophon", libraries, "--chunk", 4, limit=5)
    assert code == 1
    assert "error: sophon-sail failed on" in err
    assert checks(results_file(tmp_path))[-1].canary.check == "canary after a failure"


def test_names_and_options(rwkv_tpu, tmp_path):
    """A name that is none, an address with a password, and a libsophon that nothing takes are told at once."""
    for arguments, wanted, words in (
        (["torch", "N"], 1, "no target 'N'"),
        (["torch", "sail:x"], 1, "no target 'sail:x'"),
        (["torch", "ssh://user:secret@host/0"], 1, "the address holds a password"),
        (["torch", "--libsophon", tmp_path], 2, "--libsophon is of a board of this machine"),
        (["ssh://user@host/0", "--libsophon", tmp_path], 2, "behind the address"),
    ):
        code, out, err = rwkv_tpu(*arguments)
        assert code == wanted
        assert words in " ".join(err.replace("│", " ").split())
        assert "secret" not in out + err
        assert not (tmp_path / "runs").exists()


@pytest.mark.toolchain
def test_a_stand_in(rwkv_tpu, toolchain, tmp_path):
    """The whole way on the simulator: watched like a board, called a simulator in results and output."""
    make_stand_in(tmp_path / "stand-in", toolchain.libraries)
    options = ["--libsophon", tmp_path / "stand-in", "--chunk", 16, "--toolchain", toolchain.version]
    try:
        code, out, err = rwkv_tpu("0", *options, limit=1)
        assert code == 0, err
        assert "BM1684X simulator (stand-in for board 0), F16, prefill 16" in out
        path = results_file(tmp_path)
        assert read(path)[0].key.target["target"] == "simulator (stand-in for board 0)"
        assert [(check.is_well, check.canary.runtime["kind"]) for check in checks(path)] == [(True, "cmodel")] * 2
        sail = ModuleType("sophon.sail")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "sophon", ModuleType("sophon"))
            patch.setitem(sys.modules, "sophon.sail", sail)
            code, _, err = rwkv_tpu("sail", *options, limit=1)
        assert (code, "sophon-sail drives boards alone" in err) == (1, True)
    finally:
        shutil.rmtree(place_of(locate_board(0, tmp_path / "stand-in")).state_folder, ignore_errors=True)
