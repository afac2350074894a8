"""Vendor libraries that take their process down, in every way that was seen: what the caller learns, what is left."""

import os
import time
from pathlib import Path

import psutil
import pytest

from runtime.engine import Engine
from runtime.faults import OutOfDeviceMemory, WorkerDied, WorkerHung
from runtime.session import Session
from tests.fake_libsophon.build import FakeModel, fake_board, worker_with, write_bmodel

WAYS = {
    "abort": (WorkerDied, "killed by SIGABRT(.|\n)*the fake was told to abort"),
    "exit": (WorkerDied, "exited with code 255(.|\n)*the fake was told to exit"),
    "segfault": (WorkerDied, "killed by SIGSEGV"),
    "kill": (WorkerDied, "killed by SIGKILL: by somebody, or by the kernel for lack of memory"),
    "exhausted": (OutOfDeviceMemory, "Memory exhausted"),
    "hang": (WorkerHung, "a call into the libraries does not return"),
}
MOMENTS = {
    "bm_dev_request": "opening device 0",
    "bmrt_create": "opening device 0",
    "bmrt_load_bmodel": "loading",
    "bm_malloc_device_byte": "reserving memory",
    "bmrt_launch_tensor_ex": "running net_1",
    "bm_thread_sync": "running net_1",
    "bm_memcpy_d2s": "running net_1",
    "bm_free_device": "ending a session",
    "bmrt_destroy": "closing the device",
    "bm_dev_free": "closing the device",
}


@pytest.fixture(scope="module")
def libsophon(tmp_path_factory):
    """The fake libraries, as those of a board."""
    return fake_board(tmp_path_factory.mktemp("libsophon"))


@pytest.fixture(scope="module")
def bmodel(tmp_path_factory):
    """A net for one token."""
    return write_bmodel(tmp_path_factory.mktemp("bmodel") / "a.bmodel", FakeModel().whole())


def use(libsophon, bmodel, timeout_s, **variables):
    """Open, feed, close."""
    command = worker_with(**variables)
    with (
        Engine.open(libsophon, [bmodel], command=command, timeout_s=timeout_s) as engine,
        Session(engine) as session,
    ):
        session.feed([1])


def left():
    """All that a worker might leave behind: processes, shared memory, open files, locks."""
    open_files = [path for path in Path("/proc/self/fd").iterdir() if path.exists()]
    # Lines are numbered over the locks of all processes: another's come and go.
    held = [line.partition(":")[2] for line in Path("/proc/locks").read_text().splitlines()]
    return {
        "processes": {child.pid for child in psutil.Process().children(recursive=True)},
        "shared memory": {path.name for path in Path("/dev/shm").iterdir()},  # noqa: S108 - looked at only
        "open files": sorted(path.name for path in open_files),
        "locks": [line for line in held if f" {os.getpid()} " in line],
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("moment", ["bm_dev_request", "bmrt_load_bmodel", "bm_thread_sync", "bmrt_destroy"])
def test_each_death_is_a_fault_with_the_last_words(libsophon, bmodel, way, moment):
    """Its class, what was under way, how it ended."""
    kind, words = WAYS[way]
    with pytest.raises(kind, match=f"^{MOMENTS[moment]}(.|\n)*{words}"):
        use(libsophon, bmodel, 0.6 if way == "hang" else 30, FAKE_FAULTS=f"{moment}@1={way}")


@pytest.mark.parametrize("deaths", [30, pytest.param(200, marks=pytest.mark.long)])
def test_many_deaths_in_a_row_leave_nothing(libsophon, bmodel, tmp_path, monkeypatch, deaths):
    """All ways at all moments: afterwards neither a process nor memory, file or lock is there that was not before."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = left()
    for i in range(deaths):
        way, moment = list(WAYS)[i % len(WAYS)], list(MOMENTS)[i % len(MOMENTS)]
        with pytest.raises(WAYS[way][0], match=f"^{MOMENTS[moment]}"):
            use(libsophon, bmodel, 0.5 if way == "hang" else 30, FAKE_FAULTS=f"{moment}@1={way}")
    assert left() == before
    assert list(tmp_path.iterdir()) == []
    use(libsophon, bmodel, 30)


def test_a_death_while_loading_tells_both_versions(libsophon, bmodel):
    """A library may crash on what a newer compiler made, instead of refusing it."""
    words = r"made by compiler 2\.2\+v0\.0\.0-20260101; the runtime here is libbmrt_version:0\.0\.0.*update libsophon"
    with pytest.raises(WorkerDied, match=words):
        use(libsophon, bmodel, 30, FAKE_FAULTS="bmrt_load_bmodel@1=abort")


def test_a_hanging_call_shows_signs_of_life(libsophon, bmodel):
    """The worker is alive; the call into the library is what does not return."""
    with pytest.raises(
        WorkerHung, match=r"no answer within 2\.5 s.* it is alive, and a call into the libraries"
    ) as caught:
        use(libsophon, bmodel, 2.5, FAKE_FAULTS="bm_thread_sync@1=hang")
    assert caught.value.silent_s < 2.5


def test_a_stopped_worker_shows_none(libsophon, bmodel):
    """Somebody stopped it, or it gets no processor time: another reason for the same silence."""
    begin = time.monotonic()
    with pytest.raises(WorkerHung, match="one is due every second: it is stopped, gets no processor time") as caught:
        use(libsophon, bmodel, 4, FAKE_FAULTS="bm_thread_sync@1=stop")
    assert caught.value.silent_s > 3
    assert time.monotonic() - begin < 120


def test_a_leak_of_device_memory_is_found(libsophon, bmodel, tmp_path):
    """The library counts what was not given back; closing an engine then fails."""
    script = tmp_path / "leaking.py"
    script.write_text(
        "from runtime import device, worker\n"
        "device.Device.free = lambda self, memory: self._memory.pop(memory.device_addr)\n"
        "worker.main()\n"
    )
    engine = Engine.open(libsophon, [bmodel], command=[*worker_with()[:2], str(script)])
    with pytest.raises(WorkerDied, match=r"closing the device(.|\n)*slot_avail"):
        engine.close()
