"""Stages of a compile: markers, limits, what a kill leaves and how it is gone on from, room on the disk, eviction."""

import dataclasses
import fcntl
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import onnx
import psutil
import pytest
from onnx import helper

from compile.compiler import CompileError, Stage, compile_graph
from compile.disk import DiskFullError, needed_bytes
from compile.eviction import DEFAULT_LIMIT_BYTES, Hold, LimitError, evict, limit_bytes
from compile.own_work import OwnTimeoutError, forget_peak, limited, own_peak_bytes
from compile.sameness import differences, undated_sha256
from compile.stages import MARKER, read_progress
from tests.fake_compiler import ARRAYS, SlowExport, fake_job

STAGES = [stage.value for stage in Stage]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A job whose tools are scripts that do as the variable FAKE says."""
    return fake_job(tmp_path, monkeypatch)


def test_the_marker_of_a_finished_compile(fake, tmp_path):
    """It says of every stage how long it took, how much memory, which log and what was made; all of it is there."""
    made = compile_graph(fake, tmp_path / "cache", timeout_s=77)
    progress = read_progress(made.folder)
    assert (progress.key, progress.limit_s, progress.running) == (fake.key, 77, None)
    assert [one.stage.value for one in progress.done] == STAGES == list(made.result.costs)
    assert all((made.folder / one.log).is_file() and one.peak_bytes > 0 for one in progress.done)
    names = {one.stage: [file.name for file in one.artefacts] for one in progress.done}
    assert names[Stage.EXPORT] == ["model.onnx"]
    assert names[Stage.TRANSFORM] == ["model.mlir", "top_weight.npz"]
    assert names[Stage.CODEGEN] == ["decode_bm1684x_f16_final.mlir", "model.bmodel"]


def test_lowering_and_codegen_are_told_apart(fake, tmp_path, monkeypatch):
    """One tool does both; the final MLIR's appearance parts their times."""
    monkeypatch.setenv("FAKE", "slow codegen")
    said = []
    costs = compile_graph(fake, tmp_path / "cache", say=said.append).result.costs
    assert costs["codegen"].seconds > 0.8
    assert costs["lower"].seconds < costs["codegen"].seconds
    assert [line.split()[-2] for line in said[:-1]] == STAGES


@pytest.mark.parametrize(
    ("fake_does", "killed_in", "kept", "again"),
    [
        ("export", "export", [], STAGES),
        ("model_transform.py:sleep", "transform", ["export"], STAGES[1:]),
        ("model_deploy.py:sleep", "lower", ["export", "transform"], STAGES[2:]),
        ("codegen:sleep", "codegen", ["export", "transform"], STAGES[2:]),
    ],
)
def test_killed_in_each_stage(fake, tmp_path, monkeypatch, fake_does, killed_in, kept, again):
    """After a kill the marker names the stage; the next compile says so and goes on from what is whole."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("FAKE", fake_does)
    if killed_in == "export":
        fake = dataclasses.replace(fake, variant=SlowExport)
        monkeypatch.setenv("SLOW_EXPORT", "600")
    _kill_in(killed_in, fake, cache)
    monkeypatch.setenv("FAKE", "work")
    monkeypatch.setenv("SLOW_EXPORT", "0")
    said = []
    made = compile_graph(fake, cache, say=said.append)
    assert f"an earlier compile was killed in {killed_in}: " in said[0]
    assert (", ".join(kept) + " whole, going on from there" if kept else "beginning anew") in said[0]
    assert [line.split()[-2] for line in said[1:-1]] == again
    assert list(made.result.costs) == STAGES
    assert made.result.f32_operations
    assert [path.name for path in (cache / "bmodels").iterdir() if path.is_dir()] == [fake.key]


def test_what_is_not_whole_is_made_again(fake, tmp_path, monkeypatch):
    """A half-written artefact of a stage that the marker calls done is not gone on from."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("FAKE", "model_deploy.py:sleep")
    folder = _kill_in("lower", fake, cache)
    (folder / "top_weight.npz").write_bytes(b"half")
    monkeypatch.setenv("FAKE", "work")
    said = []
    compile_graph(fake, cache, say=said.append)
    assert "killed in lower: export whole" in said[0]
    assert [line.split()[-2] for line in said[1:-1]] == STAGES[1:]


def _kill_in(stage, job, cache):
    """Start a compile elsewhere, kill it in a stage, and return the folder that it leaves."""
    child = multiprocessing.get_context("spawn").Process(target=compile_graph, args=(job, cache))
    child.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for marker in cache.glob(f"bmodels/.*/{MARKER}"):
            progress = read_progress(marker.parent)
            if progress and progress.running and progress.running.value == stage and _tool_is_up(marker.parent, stage):
                tools = psutil.Process(child.pid).children(recursive=True)
                os.kill(child.pid, signal.SIGKILL)
                child.join()
                assert not psutil.wait_procs(tools, timeout=30)[1], "a tool outlived the compile"
                return marker.parent
        time.sleep(0.02)
    child.kill()
    raise AssertionError(f"the compile was never in {stage}")


def _tool_is_up(folder, stage):
    return stage == "export" or (folder / "helper").is_file()


def test_a_limit_for_each_stage(fake, tmp_path, monkeypatch):
    """Export and codegen have a limit too: each of the two parts of a tool its own."""
    monkeypatch.setenv("FAKE", "codegen:sleep")
    with pytest.raises(CompileError, match=r"^codegen of decode .*stopped at its time limit") as caught:
        compile_graph(fake, tmp_path / "cache", timeout_s=2)
    assert caught.value.stage is Stage.CODEGEN
    monkeypatch.setenv("SLOW_EXPORT", "600")
    with pytest.raises(CompileError, match=r"^export of decode .*stopped at its time limit") as caught:
        compile_graph(dataclasses.replace(fake, variant=SlowExport), tmp_path / "cache", timeout_s=1)
    assert caught.value.stage is Stage.EXPORT


def test_an_export_that_dies(fake, tmp_path, monkeypatch):
    """What the exporter raises is a failure of the stage, with its traceback in the log."""
    monkeypatch.setattr("compile.compiler.export", lambda *_: 1 / 0)
    with pytest.raises(CompileError, match=r"export of decode .*ZeroDivisionError") as caught:
        compile_graph(fake, tmp_path / "cache")
    assert "1 / 0" in str(caught.value)


def test_own_work():
    """The limit ends a loop, leaves quick work alone and never arrives late; the peak is of what is measured."""
    with pytest.raises(OwnTimeoutError), limited(0.2):
        _for_ever()
    for _ in range(20):
        with suppress(OwnTimeoutError), limited(0.002):
            time.sleep(0.002)
    forget_peak()
    before = own_peak_bytes()
    block = bytearray(200_000_000)
    assert own_peak_bytes() - before > 100e6
    del block


def _for_ever():
    while True:
        time.sleep(0.01)


def test_no_room_before(fake, tmp_path, monkeypatch):
    """Where the disk has less room than a compile takes, nothing begins, and the error says how much it takes."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match=r"compile of decode F16 needs 0\.\d\d GB .* 0\.00 GB are free"):
        compile_graph(fake, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.onnx"))
    assert needed_bytes(ARRAYS) > 5 * sum(array.nbytes for array in ARRAYS.values())


def test_full_in_the_middle(fake, tmp_path, monkeypatch):
    """A tool that dies of a full disk is no failed stage: nothing is kept, what was made goes away."""
    monkeypatch.setenv("FAKE", "model_deploy.py:full")
    with pytest.raises(DiskFullError, match=r"full in lower of decode (?s:.*)No space left on device"):
        compile_graph(fake, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_dir() and path.name != "bmodels"]


def test_limits_of_the_cache_as_asked_for():
    """Gigabytes, 20 where nothing is said, and an error for what is no number."""
    assert limit_bytes({}) == DEFAULT_LIMIT_BYTES == 20_000_000_000
    assert limit_bytes({"RWKV_TPU_CACHE_LIMIT": "0.5"}) == 500_000_000
    assert limit_bytes({"RWKV_TPU_CACHE_LIMIT": "inf"}) > 1e17
    for wrong in ("much", "-1", "nan"):
        with pytest.raises(LimitError, match="should be gigabytes"):
            limit_bytes({"RWKV_TPU_CACHE_LIMIT": wrong})


def _entry(cache, name, age_s, size=1000, kind="bmodels"):
    folder = cache / kind / name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    (folder / "model.bmodel").write_bytes(bytes(size))
    for path in folder.iterdir():
        os.utime(path, (time.time() - age_s,) * 2)
    return folder


def test_eviction(tmp_path):
    """The least recently used goes first, and no more than must; recent results stay whatever the limit."""
    old, older, recent = (_entry(tmp_path, name, age) for name, age in (("a", 8000), ("b", 9000), ("c", 10)))
    oldest = _entry(tmp_path, "d", 9999, kind="failed")
    left = _entry(tmp_path, ".e.xyz", 9998)
    assert evict(tmp_path, 10_000) == ()
    assert evict(tmp_path, 3100) == (oldest, left)
    assert evict(tmp_path, 2100) == (older,)
    assert evict(tmp_path, 0) == (old,)
    assert recent.is_dir()
    assert not any(folder.exists() for folder in (old, older, oldest, left))


def test_what_is_in_use_stays(tmp_path):
    """A result that somebody holds, or that is being made, is not evicted; a use makes it the latest."""
    used, made, idle = (_entry(tmp_path, name, 9000) for name in "abc")
    hold = Hold(used / "result.json")
    for path in used.iterdir():
        os.utime(path, (1, 1))
    lock = os.open(tmp_path / "bmodels" / ".b.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert evict(tmp_path, 0) == (idle,)
    os.close(lock)
    assert evict(tmp_path, 0) == (made,)
    hold.release()
    hold.release()
    other = pickle.loads(pickle.dumps(Hold(used / "result.json")))  # noqa: S301 - our own
    for path in used.iterdir():
        os.utime(path, (1, 1))
    assert evict(tmp_path, 0) == ()
    other.release()
    assert evict(tmp_path, 0) == (used,)
    with pytest.raises(FileNotFoundError):
        Hold(used / "result.json")


def test_a_compile_keeps_the_cache_small(fake, tmp_path, monkeypatch):
    """After a compile the cache is under its limit; a cached result that is asked for becomes the latest."""
    monkeypatch.setenv("RWKV_TPU_CACHE_LIMIT", "0")
    old = _entry(tmp_path, "old", 9000)
    made = compile_graph(fake, tmp_path)
    assert not old.exists()
    assert made.path.is_file()
    for path in made.folder.iterdir():
        os.utime(path, (1, 1))
    assert evict(tmp_path, 0) == ()  # held
    made.hold.release()
    again = compile_graph(fake, tmp_path)
    assert again.cached
    again.hold.release()
    assert evict(tmp_path, 0) == ()  # used just now
    monkeypatch.setenv("RWKV_TPU_CACHE_LIMIT", "lots")
    with pytest.raises(LimitError):
        compile_graph(fake, tmp_path)


def test_dates_do_not_count(tmp_path):
    """Two bmodels that differ in the date of their description are the same; in anything else they are not."""

    def bmodel(name, date, rest=b"weights"):
        description = b"kernel.so\x00" + date + b"\x00BM1684X"
        path = tmp_path / name
        path.write_bytes(b"\xee\xaa\x55\xff@\x00\x00\x00" + len(description).to_bytes(4, "little") + bytes(52))
        path.write_bytes(path.read_bytes() + description + rest)
        return undated_sha256(path)

    first = bmodel("a", b"Sat Nov 28 12:52:50 2026\n")
    assert bmodel("b", b"Sun Nov  1 02:02:05 2027\n") == first
    assert bmodel("c", b"Sat Nov 28 12:52:50 2026\n", b"Weights") != first
    assert bmodel("d", b"no date, and as long....\n") != first


def test_differences_are_told_by_stage(fake, tmp_path, monkeypatch):
    """Two compiles of one job agree; where they do not, the first stage that made something else is named."""
    folders = []
    for name, salt in (("a", ""), ("b", ""), ("c", "pepper")):
        monkeypatch.setenv("SALT", salt)
        folders.append(compile_graph(fake, tmp_path / name).folder)
    assert differences(*folders[:2]) == ()
    assert differences(folders[0], folders[2]) == ("codegen: model.bmodel, also without its date",)
    progress = read_progress(folders[1])
    changed = [msgspec.structs.replace(file, sha256="0" * 64) for file in progress.done[1].artefacts]
    done = list(progress.done)
    done[1] = msgspec.structs.replace(done[1], artefacts=tuple(changed))
    msgspec.structs.replace(progress, done=tuple(done)).write(folders[1])
    assert differences(*folders[:2])[0] == "transform: model.mlir"
    (folders[0] / MARKER).unlink()
    assert "does not say" in differences(*folders[:2])[0]


@pytest.mark.toolchain
def test_an_onnx_that_the_compiler_rejects(real_job, tmp_path, monkeypatch):
    """It fails in transform, in the compiler's words."""

    def export_other(_, path: Path):
        graph = helper.make_graph([helper.make_node("Nonsense", ["x"], ["y"])], "other", [], [])
        onnx.save(helper.make_model(graph), path)
        return []

    monkeypatch.setattr("compile.compiler.export", export_other)
    with pytest.raises(CompileError, match=r"^transform of decode .*exited with status 1(?s:.*)onnx") as caught:
        compile_graph(real_job, tmp_path)
    assert caught.value.stage is Stage.TRANSFORM


@pytest.fixture
def real_job(fake, toolchain):
    """The same job for the real compiler."""
    return dataclasses.replace(fake, toolchain=toolchain)
