"""Real bmodels on the real simulator: states, sessions, and the ways in which loading them fails."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from runtime.bmodel import HEADER
from runtime.engine import Engine
from runtime.faults import BadBmodel, DeviceError, LibraryMissing, OutOfDeviceMemory, RuntimeFault, WorkerDied
from runtime.libraries import Kind, Libraries
from runtime.session import Session

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.toolchain

# The real worker, except that it never gives device memory back.
LEAKING = """
from runtime import device, worker
device.Device.free = lambda self, memory: self._memory.pop(memory.device_addr)
worker.main()
"""

PROMPT = [int(token) for token in np.random.default_rng(7).integers(0, 250, 17)]


@pytest.fixture(scope="module")
def cmodel(rwkv_bmodels):
    """The simulator's libraries."""
    return Libraries.cmodel(rwkv_bmodels.libraries)


@pytest.fixture(scope="module")
def engine(rwkv_bmodels, cmodel):
    """An engine with all three nets, each from a file of its own."""
    with Engine.open(cmodel, [rwkv_bmodels.decode, rwkv_bmodels.prefill, rwkv_bmodels.prefill_all]) as opened:
        yield opened


@pytest.fixture
def session(engine):
    """A session with the zero state."""
    with Session(engine) as started:
        yield started


def nets_of(engine):
    """Names of the decode net, the prefill net and the prefill net that gives every position."""
    decode, prefill, prefill_all = engine.nets
    return decode.name, prefill.name, prefill_all.name


def assert_same(got, want):
    """Compare lists of arrays bit for bit."""
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_close(got, want):
    """Compare what two graphs compute in half precision: 2 % of the largest value."""
    assert np.isfinite(got).all()
    error = np.abs(got - want).max() / np.abs(want).max()
    assert error <= 0.02, f"relative error {error:.3g}"


def test_the_engine_tells_what_it_loaded(engine, rwkv_bmodels):
    """Nets come in the order of the files, described by their shapes."""
    decode, prefill, prefill_all = engine.nets
    assert [net.bmodel for net in engine.nets] == [
        str(path.absolute()) for path in (rwkv_bmodels.decode, rwkv_bmodels.prefill, rwkv_bmodels.prefill_all)
    ]
    assert (decode.tokens, decode.every_position) == (1, True)
    assert (prefill.tokens, prefill.every_position) == (prefill_all.tokens, False)
    assert prefill_all.tokens > 1
    assert prefill_all.every_position
    assert all(net.addr_mode == 0 for net in engine.nets)
    assert decode.states
    assert decode.states == prefill.states == prefill_all.states


def test_the_engine_tells_its_versions(engine, rwkv_bmodels):
    """Libraries by path and hash, and the chip: what a record needs."""
    versions = engine.versions
    assert versions.kind is Kind.CMODEL
    assert versions.chip_id == 0x1686
    assert versions.driver is None
    assert "libbmrt_version" in versions.libbmrt
    assert "libbmlib_version" in versions.libbmlib
    folder = rwkv_bmodels.libraries.resolve()
    assert {Path(file.path).parent for file in versions.libraries} == {folder}
    assert len({file.sha256 for file in versions.libraries}) == 3


def test_the_simulators_threads_are_calm(engine):
    """Unused engines run only when no other wants the core; those that wait step back where cores are few."""
    threads = {}
    for task in Path(f"/proc/{engine._worker.pid}/task").iterdir():
        threads[(task / "comm").read_text().strip()] = int(task.name)
    for name in ("TPU_GDE", "TPU_SORT", "TPU_NMS"):
        assert os.sched_getscheduler(threads[name]) == os.SCHED_IDLE
    own = os.getpriority(os.PRIO_PROCESS, 0)
    waiting = max(own, 5) if len(os.sched_getaffinity(0)) < 4 else own
    assert os.getpriority(os.PRIO_PROCESS, threads["CORE_MAIN"]) == waiting
    assert os.getpriority(os.PRIO_PROCESS, engine._worker.pid) == waiting
    for name in ("TPU_BD", "TPU_GDMA"):
        assert os.sched_getscheduler(threads[name]) == os.SCHED_OTHER
        assert os.getpriority(os.PRIO_PROCESS, threads[name]) == own
    usable = os.sched_getaffinity(0)
    if len(usable) == 2:
        first, second = ({core} for core in sorted(usable))
        assert os.sched_getaffinity(engine._worker.pid) == os.sched_getaffinity(threads["TPU_BD"]) == first
        assert os.sched_getaffinity(threads["CORE_MAIN"]) == os.sched_getaffinity(threads["TPU_GDMA"]) == second


def test_the_simulator_rests_between_requests(engine, session):
    """An engine that nobody asks takes no processor time."""
    session.get_state()
    worker = psutil.Process(engine._worker.pid)
    for _ in range(1000):  # each thread stops when it is next scheduled
        if worker.status() == psutil.STATUS_STOPPED:
            break
        time.sleep(0.01)
    before = sum(worker.cpu_times()[:2])
    time.sleep(0.5)
    assert sum(worker.cpu_times()[:2]) - before <= 0.02


def test_the_first_state_is_zero(session):
    """A session begins where a text begins."""
    assert all(not state.any() for state in session.get_state())


def test_a_prompt_moves_the_state_and_gives_logits(engine, session):
    """Logits are float32 of the vocabulary's length, finite, and every state has changed."""
    logits = session.feed(PROMPT[:1])
    assert (logits.shape, logits.dtype) == ((engine.nets[0].vocabulary,), np.float32)
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 0
    for state, expected in zip(session.get_state(), engine.nets[0].states, strict=True):
        assert (state.shape, state.dtype) == (expected.shape, np.float32)
        assert state.any()


def test_prefill_and_decode_agree(engine, session):
    """A chunk and a tail give what single steps give: the state passes between nets, and none is fed twice."""
    decode, _, _ = nets_of(engine)
    stepwise = np.stack([session.run(decode, [token]) for token in PROMPT])
    state = session.get_state()
    session.reset()
    everywhere = session.feed_all(PROMPT)
    assert everywhere.shape == stepwise.shape
    assert_close(everywhere, stepwise)
    session.reset()
    assert_close(session.feed(PROMPT), stepwise[-1])
    for got, want in zip(session.get_state(), state, strict=True):
        assert_close(got, want)


def test_the_state_matters(session):
    """The same token after another prompt gives other logits."""
    first = session.feed(PROMPT[:2])
    session.reset()
    session.feed(PROMPT[2:3])
    assert not np.allclose(session.feed(PROMPT[1:2]), first, atol=0.1)


def test_run_calls_one_net(engine, session):
    """Each kind of net answers in its own shape; the last of all positions is the last position."""
    decode, prefill, prefill_all = nets_of(engine)
    T, V = engine.nets[1].tokens, engine.nets[1].vocabulary
    chunk = PROMPT[:T]
    assert session.run(decode, PROMPT[:1]).shape == (V,)
    session.reset()
    last = session.run(prefill, chunk)
    session.reset()
    everywhere = session.run(prefill_all, chunk)
    assert (last.shape, everywhere.shape) == ((V,), (T, V))
    assert_close(everywhere[-1], last)
    assert session.last_call_s > 0


def test_the_same_prompt_gives_the_same_bits(session):
    """Nothing of an earlier prompt is left after a reset, and the simulator is deterministic."""
    first = [session.feed(PROMPT), *session.get_state()]
    session.reset()
    assert all(not state.any() for state in session.get_state())
    assert_same([session.feed(PROMPT), *session.get_state()], first)


def test_a_state_can_be_carried_to_another_session(engine, session):
    """What get_state gives continues elsewhere as if nothing had happened."""
    session.feed(PROMPT[:16])
    state = session.get_state()
    want = session.feed(PROMPT[16:])
    with Session(engine) as other:
        other.feed(PROMPT[5:6])
        other.set_state(state)
        assert_same(other.get_state(), state)
        np.testing.assert_array_equal(other.feed(PROMPT[16:]), want)


def test_a_fork_continues_with_the_same_bits(session):
    """The copy is made on the device, and both go their own ways from there."""
    session.feed(PROMPT[:2])
    with session.fork() as fork:
        assert session.compare(fork).exact
        np.testing.assert_array_equal(session.feed(PROMPT[2:3]), fork.feed(PROMPT[2:3]))
        fork.feed(PROMPT[3:4])
        assert not session.compare(fork).exact


def test_a_saved_state_continues_with_the_same_bits(engine, session, tmp_path):
    """Through a file and another session."""
    session.feed(PROMPT[:2])
    session.save(tmp_path / "a.state")
    want = session.feed(PROMPT[2:3])
    with Session(engine) as other:
        other.load(tmp_path / "a.state")
        np.testing.assert_array_equal(other.feed(PROMPT[2:3]), want)


def test_sessions_do_not_see_each_other(engine, session):
    """Two prompts in turns give what each gives alone."""
    one, two = PROMPT[:2], PROMPT[2:4]
    alone = []
    for prompt in (one, two):
        session.reset()
        alone.append([session.feed([token]) for token in prompt])
    session.reset()
    with Session(engine) as other:
        turns = [(session.feed([a]), other.feed([b])) for a, b in zip(one, two, strict=True)]
    assert_same([first for first, _ in turns], alone[0])
    assert_same([second for _, second in turns], alone[1])


def test_wrong_calls_are_refused_and_change_nothing(engine, session):
    """Every mistake is a ValueError that names what is wrong, raised before anything is fed."""
    decode, prefill, _ = nets_of(engine)
    V, T = engine.nets[0].vocabulary, engine.nets[1].tokens
    session.feed(PROMPT[:1])
    state = session.get_state()
    mistakes = [
        (lambda: session.feed([]), "at least one token"),
        (lambda: session.feed_all([]), "at least one token"),
        (lambda: session.feed([1, 2, V]), f"token {V} at position 2 is outside the vocabulary [0, {V})"),
        (lambda: session.feed_all([-1]), f"token -1 at position 0 is outside the vocabulary [0, {V})"),
        (lambda: session.run(decode, [1, 2]), f"{decode} takes 1 tokens a call, got 2"),
        (lambda: session.run(prefill, [1]), f"{prefill} takes {T} tokens a call, got 1"),
        (lambda: session.run("nonsense", [1]), "no net is named 'nonsense'"),
        (lambda: session.set_state(state[:-1]), "expected states of shapes"),
        (lambda: session.set_state([array.ravel() for array in state]), "expected states of shapes"),
    ]
    for mistake, words in mistakes:
        with pytest.raises(ValueError, match=re.escape(words)):
            mistake()
    assert_same(session.get_state(), state)


def test_tokens_may_be_an_array(session):
    """Numpy's integers are as good as Python's."""
    first = session.feed(PROMPT[:2])
    session.reset()
    np.testing.assert_array_equal(session.feed(np.array(PROMPT[:2])), first)


def test_a_closed_session_is_refused(engine):
    """Closing twice is fine, using it is not, and the engine goes on."""
    closed = Session(engine)
    closed.close()
    closed.close()
    with pytest.raises(RuntimeFault, match="closed"):
        closed.feed([1])
    assert engine.alive


def test_a_combined_bmodel_is_as_good_as_its_parts(rwkv_bmodels, toolchain, cmodel, session, tmp_path):
    """The toolchain's own tool puts decode and prefill into one file; a prompt gives the same bits."""
    combined = tmp_path / "combined.bmodel"
    parts = [rwkv_bmodels.decode, rwkv_bmodels.prefill]
    command = [*toolchain.command("model_tool"), "--combine", *parts, "-o", combined]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=toolchain.environment())
    with Engine.open(cmodel, [combined]) as engine, Session(engine) as other:
        assert [net.tokens for net in engine.nets] == [1, 16]
        got = [other.feed(PROMPT), *other.get_state()]
    assert_same(got, [session.feed(PROMPT), *session.get_state()])


def test_without_a_decode_net_a_tail_is_refused(rwkv_bmodels, cmodel, tmp_path, monkeypatch):
    """A tail is never padded; and an engine that comes and goes leaves no temporary file."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with Engine.open(cmodel, [rwkv_bmodels.prefill_all]) as engine, Session(engine) as session:
        assert list(tmp_path.iterdir()) == []
        T = engine.nets[0].tokens
        with pytest.raises(ValueError, match=f"1 of {T + 1} tokens are left over"):
            session.feed(range(T + 1))
        assert session.feed_all(range(T)).shape == (T, engine.nets[0].vocabulary)
        os.kill(engine._worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match=f"running {engine.nets[0].name}: the worker was killed by SIGKILL"):
            session.feed_all(range(T))
        assert not engine.alive
    assert list(tmp_path.iterdir()) == []


def test_closed_sessions_give_their_memory_back(rwkv_bmodels):
    """A device that holds a few dozen sessions serves hundreds, one after the other."""
    small = Libraries.cmodel(rwkv_bmodels.libraries, memory_bytes=100 << 20)
    with Engine.open(small, [rwkv_bmodels.decode]) as engine:
        for _ in range(300):
            Session(engine).close()
        assert engine.alive


def test_a_leak_of_device_memory_is_found(rwkv_bmodels, cmodel, tmp_path):
    """The simulator counts what was not given back; closing an engine then fails."""
    script = tmp_path / "leaking.py"
    script.write_text(LEAKING)
    engine = Engine.open(cmodel, [rwkv_bmodels.decode], command=[sys.executable, str(script)])
    with pytest.raises(WorkerDied, match=r"ending the worker(.|\n)*slot_avail"):
        engine.close()


def test_left_engine_is_waited_for(rwkv_bmodels, cmodel):
    """It has given its device back and takes no requests; closing it waits for the worker's end."""
    engine = Engine.open(cmodel, [rwkv_bmodels.decode])
    engine.leave()
    assert not engine.alive
    with pytest.raises(WorkerDied, match="has ended before"):
        engine.memory()
    pid = engine._worker.pid
    engine.leave()
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_lack_of_memory_is_told(rwkv_bmodels):
    """A bmodel that does not fit is not a crash of unknown reason."""
    small = Libraries.cmodel(rwkv_bmodels.libraries, memory_bytes=82 << 20)  # 81 MiB are the simulator's own
    with pytest.raises(OutOfDeviceMemory, match=f"loading {rwkv_bmodels.decode}"):
        Engine.open(small, [rwkv_bmodels.decode])


def test_a_name_can_be_loaded_once(rwkv_bmodels, cmodel):
    """Two nets of one name could not be told apart."""
    with pytest.raises(BadBmodel, match="no net with a new name"):
        Engine.open(cmodel, [rwkv_bmodels.decode, rwkv_bmodels.decode])


def test_another_kind_of_net_is_refused(toolchain):
    """The wheel's own example is a bmodel, but no RWKV."""
    example = next(toolchain.libraries.parent.glob("python/tools/soc_infer/demo/*/compilation.bmodel"))
    with pytest.raises(BadBmodel, match="has 1 inputs and 1 outputs"):
        Engine.open(Libraries.cmodel(toolchain.libraries), [example])


def test_a_bmodel_for_another_chip_is_refused(rwkv_bmodels, cmodel, tmp_path):
    """The file says which chip it is for; the library is not even asked."""
    other = tmp_path / "other.bmodel"
    other.write_bytes(rwkv_bmodels.decode.read_bytes().replace(b"BM1684X\0", b"BM1688\0\0"))
    with pytest.raises(BadBmodel, match=r"other\.bmodel is for BM1688; the device is BM1684X"):
        Engine.open(cmodel, [other])


def test_a_damaged_description_is_refused(rwkv_bmodels, cmodel, tmp_path):
    """Where we see it, before the library loads the file; where only the library does, it crashes and we know why."""
    damaged = tmp_path / "damaged.bmodel"
    content = bytearray(rwkv_bmodels.decode.read_bytes())
    length = int.from_bytes(content[8:12], "little")
    for start, words in ((HEADER.size + length // 2, "is broken"), (HEADER.size, "is damaged: its description")):
        content[start : start + 4096] = bytes(4096)
        damaged.write_bytes(content)
        with pytest.raises(BadBmodel, match=words):
            Engine.open(cmodel, [damaged])


def test_a_file_that_is_no_bmodel_is_refused_first(cmodel, tmp_path):
    """Before any library is loaded."""
    text = tmp_path / "text.bmodel"
    text.write_text("not a bmodel" * 100)
    with pytest.raises(BadBmodel, match="expected it to start with 0xff55aaee"):
        Engine.open(Libraries.cmodel(tmp_path), [text])
    with pytest.raises(ValueError, match="at least one bmodel"):
        Engine.open(cmodel, [])


def test_a_device_that_is_not_there_is_refused(rwkv_bmodels, cmodel):
    """The simulator has one device."""
    with pytest.raises(DeviceError, match="there is no device 1: the library counts 1"):
        Engine.open(cmodel, [rwkv_bmodels.decode], device=1)


def test_missing_libraries_are_named(rwkv_bmodels, tmp_path):
    """Every path that was looked for is in the message, of simulator and board."""
    with pytest.raises(LibraryMissing, match=re.escape(str(tmp_path / "libcmodel_bm1684x.so"))):
        Engine.open(Libraries.cmodel(tmp_path), [rwkv_bmodels.decode])
    with pytest.raises(LibraryMissing, match=re.escape(f"{tmp_path / 'libbmlib.so.0'} nor {tmp_path / 'libbmlib.so'}")):
        Engine.open(Libraries.board(tmp_path), [rwkv_bmodels.decode])


def test_libraries_that_do_not_load_are_named(rwkv_bmodels, tmp_path):
    """A file of the right name may still be no library."""
    for name in ("libbmlib.so.0", "libbmrt.so.1.0"):
        (tmp_path / name).write_text("nonsense")
    with pytest.raises(LibraryMissing, match="do not load"):
        Engine.open(Libraries.board(tmp_path), [rwkv_bmodels.decode])


def test_memory_must_be_positive(tmp_path):
    """A size that the simulator would misread is refused."""
    with pytest.raises(ValueError, match="memory_bytes should be positive, got 0"):
        Libraries.cmodel(tmp_path, memory_bytes=0)
