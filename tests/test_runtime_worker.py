"""Messages, and whatever may happen to a worker process. The vendor's libraries are not needed here."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bmodel import HEADER, MAGIC, check_is_bmodel, read_origin
from runtime.faults import BadBmodel, DeviceError, OutOfDeviceMemory, RuntimeFault, WorkerDied, WorkerHung
from runtime.framing import FramingError, encode, receive
from runtime.process import WORKER, WorkerProcess
from tests.fake_libsophon.build import write_bmodel

ROOT = Path(__file__).resolve().parent.parent

# The real worker with one more request, "misbehave", that does what vendor libraries have been seen doing.
MISBEHAVING = """
import ctypes, os, signal, sys, time
from runtime import faults, worker
from runtime.framing import Message

libc = ctypes.CDLL(None)

def misbehave(payloads, how):
    if how == "abort":
        libc.puts(b"ASSERT info: a wish before dying")  # to the buffer of standard output
        os.abort()
    if how == "segfault":
        ctypes.string_at(8)
    if how == "exit":
        libc.puts(b"ASSERT info: a wish before dying")
        libc.exit(255)
    if how == "memory":
        print("Memory exhausted: cannot find a slot.", file=sys.stderr, flush=True)
        libc.exit(255)
    if how == "bug":
        raise KeyError("not thought of")
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "hang":
        print("just one more moment", file=sys.stderr, flush=True)
        time.sleep(1000)
    if how == "print":
        print("a line from Python", flush=True)
        libc.puts(b"a line from C")
        os.write(1, b"bytes to standard output")
    if how == "device":
        raise faults.DeviceError("it is tired", call="bm_dev_request", status=3)
    if how == "garbage":
        os.write(4, b"not a message at all, though long enough to be one")
        time.sleep(1000)
    if how == "environment":
        return Message(dict(os.environ), [])
    return Message({"got": [len(payload) for payload in payloads]}, payloads)

init = worker.Worker.__init__
def new_init(self, shared):
    init(self, shared)
    self._requests["misbehave"] = misbehave
worker.Worker.__init__ = new_init
worker.main()
"""


@pytest.fixture
def start(tmp_path):
    """Start misbehaving workers; afterwards see that no process of ours is left."""
    script = tmp_path / "misbehaving.py"
    script.write_text(MISBEHAVING)
    before = set(psutil.Process().children(recursive=True))
    workers = []

    def start_one(*, timeout_s=30.0, pausing=False, **variables):
        workers.append(
            WorkerProcess(
                timeout_s=timeout_s, pausing=pausing, variables=variables, command=[sys.executable, str(script)]
            )
        )
        return workers[-1]

    yield start_one
    for worker in workers:
        worker.kill()
    assert set(psutil.Process().children(recursive=True)) <= before


def ask(worker, how, payloads=()):
    """Ask a worker to misbehave in one way."""
    return worker.request("testing", payloads, do="misbehave", how=how)


def reader_of(data):
    """Read from bytes as from a pipe."""
    position = 0

    def read(count):
        nonlocal position
        if position + count > len(data):
            raise EOFError
        position += count
        return data[position - count : position]

    return read


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
fields_of_messages = st.dictionaries(st.text().filter(lambda key: key != "payloads"), json_values)


@given(fields_of_messages, st.lists(st.binary(max_size=200), max_size=5))
def test_a_message_arrives_as_it_was_sent(fields, payloads):
    """Fields and payloads survive the pipe, and nothing of the next message is consumed."""
    read = reader_of(encode(fields, payloads) + b"next")
    assert receive(read) == (fields, payloads)
    assert read(4) == b"next"


@given(st.lists(st.binary(max_size=50), max_size=3), st.data())
def test_a_cut_message_is_never_taken_for_a_whole_one(payloads, data):
    """Wherever a message ends early, the reader's end comes through."""
    message = encode({"do": "run"}, payloads)
    cut = data.draw(st.integers(0, len(message) - 1))
    with pytest.raises(EOFError):
        receive(reader_of(message[:cut]))


@given(st.binary(min_size=12, max_size=200))
def test_other_bytes_are_no_message(noise):
    """Whatever else arrives is refused, not misread."""
    with pytest.raises((FramingError, EOFError)):
        receive(reader_of(noise))


@pytest.mark.parametrize("position", range(4))
def test_a_message_must_begin_like_one(position):
    """Bytes out of step are noticed at once."""
    message = bytearray(encode({"do": "run"}, [b"abc"]))
    message[position] ^= 1
    with pytest.raises(FramingError, match="expected a message that starts with"):
        receive(reader_of(bytes(message)))


@pytest.mark.parametrize(
    "header", [b"[]", b"{}", b"{", b'{"payloads": 3}', b'{"payloads": ["a"]}', b'{"payloads": [-1]}', b"\xff"]
)
def test_a_damaged_header_is_refused(header):
    """The right start does not make a message."""
    whole = encode({}, [])
    prefix = whole[:4] + len(header).to_bytes(8, "little")
    with pytest.raises(FramingError):
        receive(reader_of(prefix + header))


@pytest.mark.parametrize(
    ("how", "words", "returncode"),
    [
        ("abort", "killed by SIGABRT", -signal.SIGABRT),
        ("segfault", "killed by SIGSEGV", -signal.SIGSEGV),
        ("exit", "exited with code 255, as the vendor's libraries do", 255),
        ("bug", "exited with code 1", 1),
    ],
)
def test_a_death_is_told_in_words(start, how, words, returncode):
    """Signal or exit code and what was under way; the worker then counts as gone."""
    worker = start()
    with pytest.raises(WorkerDied, match=f"^testing: the worker (was )?{words}") as caught:
        ask(worker, how)
    assert caught.value.returncode == returncode
    assert not worker.alive
    with pytest.raises(WorkerDied, match="a new one is needed"):
        ask(worker, "nothing")


@pytest.mark.parametrize("how", ["abort", "exit"])
def test_last_words_come_out_of_the_librarys_buffer(start, how):
    """What the library printed just before is in the message, even though it never flushed it."""
    with pytest.raises(WorkerDied, match="ASSERT info: a wish before dying"):
        ask(start(), how)


def test_last_words_are_of_this_request(start):
    """What an earlier request printed explains nothing."""
    worker = start()
    ask(worker, "print")
    with pytest.raises(WorkerDied) as caught:
        ask(worker, "bug")
    assert "not thought of" in str(caught.value)
    assert "a line from C" not in str(caught.value)


def test_lack_of_memory_is_known_by_the_last_words(start):
    """The simulator's libraries do not return when memory is exhausted: they print it and exit."""
    with pytest.raises(OutOfDeviceMemory, match="Memory exhausted"):
        ask(start(), "memory")


def test_a_hanging_worker_is_killed(start):
    """A request that takes too long ends the worker, and says what was under way."""
    worker = start(timeout_s=0.5)
    begin = time.monotonic()
    with pytest.raises(WorkerHung, match=r"testing: no answer within 0.5 s(.|\n)*just one more moment"):
        ask(worker, "hang")
    assert time.monotonic() - begin < 500
    assert not psutil.pid_exists(worker.pid)


def test_bytes_that_are_no_message_end_the_worker(start):
    """Should something write to our own pipe after all, the garbage is not taken for a reply."""
    worker = start()
    with pytest.raises(WorkerDied, match="expected a message that starts with"):
        ask(worker, "garbage")
    assert not psutil.pid_exists(worker.pid)


def test_printing_does_not_reach_the_pipe(start):
    """Whatever goes to standard output, from C or Python, is not taken for a reply."""
    worker = start()
    for _ in range(3):
        assert ask(worker, "print", [b"x"]).payloads == [b"x"]


def test_a_fault_keeps_its_class_and_details(start):
    """What is raised in the worker is raised here, and the worker goes on."""
    worker = start()
    with pytest.raises(DeviceError, match="testing: it is tired") as caught:
        ask(worker, "device")
    assert (caught.value.call, caught.value.status) == ("bm_dev_request", 3)
    assert ask(worker, "nothing").fields == {"got": []}


def test_large_payloads_pass_both_ways(start):
    """Megabytes pass, many times what a pipe holds."""
    payloads = [os.urandom(5_000_000), b"", os.urandom(1)]
    assert ask(start(), "nothing", payloads).payloads == payloads


def test_ctrl_c_ends_the_worker(start):
    """After an interrupted request no reply may be left that the next request would take for its own."""
    worker = start()
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ask(worker, "hang")
    timer.join()
    assert not worker.alive
    assert not psutil.pid_exists(worker.pid)


def test_a_pausing_worker_rests_between_requests(start):
    """It is stopped once it has answered, and answers again."""
    worker = start(pausing=True)
    for _ in range(3):
        assert ask(worker, "nothing", [b"ab"]).fields == {"got": [2]}
        deadline = time.monotonic() + 60
        while psutil.Process(worker.pid).status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
            time.sleep(0.01)
        assert psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED
    worker.close()
    assert not psutil.pid_exists(worker.pid)


def test_the_environment_is_clean(start, monkeypatch):
    """Variables that change what the libraries do stay out; those asked for go in."""
    for name in ("LD_LIBRARY_PATH", "LD_PRELOAD", "BMRUNTIME_USING_FIRMWARE", "CMODEL_GLOBAL_MEM_SIZE", "PYTHONHOME"):
        monkeypatch.setenv(name, "" if name == "LD_PRELOAD" else "/nonsense")
    found = ask(start(WANTED="yes"), "environment").fields
    assert found["WANTED"] == "yes"
    assert set(found) <= {"PATH", "HOME", "TMPDIR", "LANG", "PYTHONPATH", "WANTED", "LC_CTYPE"}  # the window's is gone


@pytest.mark.parametrize("pausing", [False, True])
def test_the_worker_dies_with_its_parent(tmp_path, pausing):
    """Killing the caller, even at once and for good, leaves no worker: neither a busy one nor a resting one."""
    script = tmp_path / "misbehaving.py"
    script.write_text(MISBEHAVING)
    parent_script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from runtime.process import WorkerProcess
worker = WorkerProcess(timeout_s=1000, pausing={pausing}, variables={{}}, command=[sys.executable, {str(script)!r}])
worker.request("testing", do="misbehave", how="nothing")
print(worker.pid, flush=True)
worker.request("testing", do="misbehave", how="hang")
"""
    if pausing:
        parent_script = parent_script.replace('worker.request("testing", do="misbehave", how="hang")', "input()")
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    psutil.wait_procs([worker], timeout=120)
    assert not worker.is_running()


def test_the_worker_ends_with_its_input():
    """No parent, no pipe, no worker; also where the kernel's signal does not reach."""
    run = subprocess.run(WORKER, input=b"", capture_output=True, cwd=ROOT, timeout=30, check=False)
    assert (run.returncode, run.stdout) == (0, b"")


def test_a_command_that_does_not_exist_leaves_nothing():
    """The error of the operating system comes through."""
    with pytest.raises(FileNotFoundError):
        WorkerProcess(timeout_s=1, pausing=False, variables={}, command=["no-such-command"])


def test_requests_without_a_device_are_refused():
    """The worker says what is wrong, and goes on."""
    worker = WorkerProcess(timeout_s=30, pausing=False, variables={})
    try:
        with pytest.raises(RuntimeFault, match="no device is open"):
            worker.request("testing", do="start", sizes_bytes=[1])
    finally:
        worker.close()


@given(st.binary(max_size=200))
def test_other_files_are_no_bmodels(tmp_path_factory, content):
    """Any bytes are refused before a device is opened, and nothing but BadBmodel is raised."""
    path = tmp_path_factory.mktemp("files") / "model.bmodel"
    path.write_bytes(content)
    with pytest.raises(BadBmodel, match=r"model\.bmodel is (no bmodel|truncated)"):
        check_is_bmodel(path)


@given(st.binary(max_size=200))
def test_any_description_is_read_or_called_damaged(tmp_path_factory, description):
    """Bytes behind a right header hold two texts, or BadBmodel is raised, and nothing else."""
    path = tmp_path_factory.mktemp("files") / "model.bmodel"
    path.write_bytes(HEADER.pack(MAGIC, HEADER.size, len(description), 0) + description)
    with suppress(BadBmodel):
        assert all(isinstance(text, str) for text in read_origin(path))


@pytest.mark.parametrize("description", [b"", bytes(100), b"\xff" * 100])
def test_a_damaged_description_is_refused(tmp_path, description):
    """The message says what to do."""
    path = tmp_path / "model.bmodel"
    path.write_bytes(HEADER.pack(MAGIC, HEADER.size, len(description), 0) + description)
    with pytest.raises(BadBmodel, match=r"is damaged: its description does not hold together\. Build it again"):
        read_origin(path)


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_bmodel_tells_where_it_comes_from(tmp_path_factory, compiler, chip):
    """Compiler and chip are read as they were written, up to the zero bytes at their ends."""
    path = write_bmodel(tmp_path_factory.mktemp("files") / "model.bmodel", compiler=compiler, chip=chip)
    assert read_origin(path) == (compiler.rstrip("\0"), chip.rstrip("\0"))


@pytest.mark.parametrize("missing", [0, 1, 99])
def test_a_truncated_bmodel_is_refused(tmp_path, missing):
    """A file is as long as its header says, or it was not copied whole."""
    path = tmp_path / "model.bmodel"
    path.write_bytes((HEADER.pack(MAGIC, HEADER.size, 40, 60) + bytes(100))[: 164 - missing])
    if missing == 0:
        check_is_bmodel(path)
        return
    with pytest.raises(BadBmodel, match=f"its header tells of 164 bytes, it has {164 - missing}"):
        check_is_bmodel(path)


def test_a_missing_bmodel_is_refused(tmp_path):
    """The operating system's reason is in the message."""
    with pytest.raises(BadBmodel, match="No such file"):
        check_is_bmodel(tmp_path / "model.bmodel")


def test_replies_are_plain_json():
    """A worker of another release can be talked to and read by eye."""
    message = encode({"do": "run"}, [b"abc"])
    assert json.loads(message[12:-3]) == {"do": "run", "payloads": [3]}
