"""Sessions on a libsophon that records every call, and whose launches happen only at the right synchronisation."""

import sys
from dataclasses import dataclass

import numpy as np
import psutil
import pytest

from runtime.binding import Dtype
from runtime.engine import Engine
from runtime.faults import BadBmodel, DeviceError, FunctionMissing, OutOfDeviceMemory, RuntimeFault
from runtime.session import Session
from tests.fake_libsophon.build import FakeModel, FakeNet, fake_board, worker_with, write_bmodel

MODEL = FakeModel()
TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 320, 41)]

every_float = pytest.mark.parametrize("dtype", [Dtype.F32, Dtype.F16, Dtype.BF16], ids=lambda dtype: dtype.name)

# Workers that are wrong on purpose.
NO_SYNC = "device.Device.synchronise = lambda self: None"
SYNC_ELSEWHERE = """
import threading
synchronise = device.Device.synchronise
def elsewhere(self):
    thread = threading.Thread(target=synchronise, args=(self,))
    thread.start()
    thread.join()
device.Device.synchronise = elsewhere
"""
ONE_SET = """
init = worker._States.__init__
def one_set(self, *arguments):
    init(self, *arguments)
    for memory in self._sets[1]:
        self._device.free(memory)
    self._sets = (self._sets[0], self._sets[0])
worker._States.__init__ = one_set
"""
NO_CHECK = "device._check_overlap = lambda *arguments: None"


@pytest.fixture(scope="module")
def libsophon(tmp_path_factory):
    """The fake libraries, as those of a board."""
    return fake_board(tmp_path_factory.mktemp("libsophon"))


@pytest.fixture
def bmodel(tmp_path):
    """One file with nets for 1, 4 and 16 tokens, and one for 4 that gives every position."""
    nets = [MODEL.whole(), MODEL.whole(16), MODEL.whole(4), MODEL.whole(4, every_position=True)]
    return write_bmodel(tmp_path / "combined.bmodel", *nets)


@dataclass(frozen=True)
class Call:
    """A line of the record."""

    thread: int
    name: str
    arguments: tuple[str, ...]


class Record:
    """What the library was called for, from one moment on."""

    def __init__(self, path):
        self.path = path
        self.seen = 0

    def take(self):
        """Give the calls since the last time."""
        calls = []
        for line in self.path.read_text().splitlines():
            thread, name, *arguments = line.split()
            calls.append(Call(int(thread), name, tuple(arguments)))
        new, self.seen = calls[self.seen :], len(calls)
        return new


@pytest.fixture
def record(tmp_path):
    """The record of the worker that `recorded` starts."""
    return Record(tmp_path / "calls")


@pytest.fixture
def recorded(libsophon, bmodel, record):
    """An engine whose calls are recorded."""
    with Engine.open(libsophon, [bmodel], command=worker_with(FAKE_LOG=record.path)) as engine:
        yield engine


def wrong_worker(tmp_path, *changes):
    """Make the command of a worker with some of its code replaced."""
    script = tmp_path / "wrong.py"
    script.write_text("\n".join(["from runtime import device, worker", *changes, "worker.main()"]))
    return [sys.executable, str(script)]


def expected(tokens, model=MODEL):
    """Compute what a fake model gives: logits of every position, and the last states; see libbmrt.c."""
    shapes = [(1, model.C), (model.C // model.N, model.N, model.N), (1, model.C)] * model.layers
    states = [np.zeros(int(np.prod(shape)), int) for shape in shapes]
    ends = [0, 1, 2, 3, -4, -3, -2, -1]
    rows = np.zeros((len(tokens), model.vocabulary), int)
    for row, token in zip(rows, tokens, strict=True):
        total = of_first = 0
        for layer in range(model.layers):
            total += of_first
            for i in range(3):
                state = states[3 * layer + i]
                state[ends] = (3 * state[ends] + token % 251 + i + np.arange(len(state))[ends] + 1) % 251
                total = (7 * total + state[0] + state[-1]) % 251
            of_first = of_first or total
        row[ends] = (total + 5 * np.arange(len(row))[ends]) % 251
    return rows, [state.reshape(shape) for state, shape in zip(states, shapes, strict=True)]


def names(calls):
    """Names of calls without their prefix."""
    return [call.name.removeprefix("bm_").removeprefix("bmrt_") for call in calls]


def assert_same(got, want):
    """Compare lists of arrays bit for bit."""
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


@every_float
def test_sessions_give_what_the_nets_compute(libsophon, tmp_path, dtype):
    """Logits of every position and all states, by steps and by chunks, in every type."""
    model = FakeModel(layers=3, state_dtype=dtype, logits_dtype=dtype)
    path = write_bmodel(tmp_path / "a.bmodel", model.whole(), model.whole(4, every_position=True))
    logits, states = expected(TOKENS, model)
    with Engine.open(libsophon, [path]) as engine, Session(engine) as session:
        assert_same(session.feed_all(TOKENS), logits)
        assert_same(session.get_state(), states)
        session.reset()
        assert_same([session.feed([token]) for token in TOKENS], logits)
        assert_same(session.get_state(), states)


def test_a_whole_session_makes_the_right_calls_in_the_right_order(recorded, record):
    """Tokens in, launch, synchronisation, logits out, on one thread; no call besides, and none for the state."""
    record.take()
    with Session(recorded) as session:
        start = record.take()
        session.feed(TOKENS)
        fed = record.take()
        session.get_state()
        read = record.take()
    ended = record.take()
    states = len(recorded.nets[0].states)
    assert names(start) == ["malloc_device_byte"] * 2 * states + ["memcpy_s2d"] * states
    step = ["memcpy_s2d", "launch_tensor_ex", "thread_sync", "memcpy_d2s"]
    assert names(fed) == step * 5
    assert [call.arguments[0] for call in fed if "launch" in call.name] == [
        "net_16",
        "net_16",
        "net_4",
        "net_4",
        "net_1",
    ]
    assert names(read) == ["memcpy_d2s"] * states
    assert names(ended) == ["free_device"] * 2 * states
    assert len({call.thread for call in start + fed + read + ended}) == 1


def test_no_state_crosses_the_process_boundary_unasked(recorded, record):
    """Between a session's start and its end, only tokens go to the device and only logits come back."""
    with Session(recorded) as session:
        record.take()
        session.feed(TOKENS)
        session.feed_all(TOKENS[:5])
        session.run("net_4", TOKENS[:4])
        fork = session.fork()
        fork.feed(TOKENS[:1])
        calls = record.take()
    copied = {int(call.arguments[-1]) for call in calls if call.name in {"bm_memcpy_s2d", "bm_memcpy_d2s"}}
    V = 4 * MODEL.vocabulary
    assert copied <= {4, 16, 64, V, 4 * V}
    assert sum(call.name == "bm_memcpy_d2d_byte" for call in calls) == len(recorded.nets[0].states)


def test_inputs_and_outputs_never_share_memory(recorded, record):
    """Whatever the addressing mode: each launch reads one set of states and writes the other."""
    with Session(recorded) as session:
        session.feed(TOKENS)
    launches = [call.arguments[1:] for call in record.take() if "launch" in call.name]
    assert launches
    for arguments in launches:
        middle = arguments.index("->")
        pieces = arguments[:middle] + arguments[middle + 1 :]
        assert len(set(pieces)) == len(pieces)


def test_a_worker_on_a_board_is_never_stopped(recorded):
    """Only the simulator has threads that spin while nobody asks."""
    with Session(recorded) as session:
        for token in TOKENS:
            session.feed([token])
            assert psutil.Process(recorded._worker.pid).status() != psutil.STATUS_STOPPED


def test_everything_is_given_back(libsophon, bmodel, record):
    """After closing, every piece of device memory was freed once, and then runtime and device."""
    with Engine.open(libsophon, [bmodel], command=worker_with(FAKE_LOG=record.path)) as engine:
        Session(engine).feed(TOKENS)
        Session(engine).fork()
    calls = record.take()
    taken = [call.arguments[0] for call in calls if call.name == "bm_malloc_device_byte"]
    freed = [call.arguments[0] for call in calls if call.name == "bm_free_device"]
    assert sorted(taken) == sorted(freed)
    assert names(calls)[-2:] == ["destroy", "dev_free"]


@pytest.mark.parametrize("change", [NO_SYNC, SYNC_ELSEWHERE], ids=["missing", "on another thread"])
def test_a_wrong_synchronisation_gives_wrong_numbers(libsophon, bmodel, tmp_path, change):
    """The fake can fail: unlike on the simulator, what was launched is not there without a synchronisation."""
    command = wrong_worker(tmp_path, change)
    with Engine.open(libsophon, [bmodel], command=command) as engine, Session(engine) as session:
        assert not np.array_equal(session.feed([5]), expected([5])[0][0])


@pytest.mark.parametrize("addr_mode", range(5))
def test_shared_memory_needs_the_right_addressing_mode(libsophon, tmp_path, addr_mode):
    """In mode 0 a net may write its states where it read them; in any other that is refused, and would be wrong."""
    path = write_bmodel(tmp_path / "a.bmodel", FakeModel(addr_mode=addr_mode).whole())
    want = expected(TOKENS)[0][-1]
    with Engine.open(libsophon, [path]) as engine, Session(engine) as session:
        np.testing.assert_array_equal(session.feed(TOKENS), want)
    with Engine.open(libsophon, [path], command=wrong_worker(tmp_path, ONE_SET, NO_CHECK)) as engine:
        assert np.array_equal(Session(engine).feed(TOKENS), want) == (addr_mode == 0)
        engine._worker.kill()
    with Engine.open(libsophon, [path], command=wrong_worker(tmp_path, ONE_SET)) as engine:
        session = Session(engine)
        if addr_mode == 0:
            np.testing.assert_array_equal(session.feed(TOKENS), want)
        else:
            words = f"an input and an output of net_1 share .* which its addressing mode {addr_mode} does not allow"
            with pytest.raises(RuntimeFault, match=words):
                session.feed(TOKENS)
        engine._worker.kill()


def test_many_sessions_on_one_bmodel(recorded):
    """Fifty in turns give what each gives alone."""
    prompts = [TOKENS[i % 30 : i % 30 + 5] for i in range(50)]
    sessions = [Session(recorded) for _ in prompts]
    for position in range(5):
        rows = [session.feed([prompt[position]]) for session, prompt in zip(sessions, prompts, strict=True)]
    assert_same(rows, [expected(prompt)[0][-1] for prompt in prompts])


def test_a_fork_goes_its_own_way(recorded):
    """Both continue from the same state, and neither moves the other; also after an odd number of calls."""
    with Session(recorded) as session:
        for count in (3, 2):
            session.reset()
            for token in TOKENS[:count]:
                session.feed([token])
            with session.fork() as fork:
                assert session.compare(fork).exact
                one, two = session.feed([7]), fork.feed([9])
                np.testing.assert_array_equal(one, expected([*TOKENS[:count], 7])[0][-1])
                np.testing.assert_array_equal(two, expected([*TOKENS[:count], 9])[0][-1])
                assert not session.compare(fork).exact


def test_a_fork_without_memory_changes_nothing(libsophon, bmodel):
    """The device's memory holds two sessions; the third is refused, and no piece of it is left behind."""
    state_bytes = 4 * MODEL.layers * (2 * MODEL.C + MODEL.C * MODEL.N)
    command = worker_with(FAKE_MEMORY=5 * state_bytes)
    with Engine.open(libsophon, [bmodel], command=command) as engine, Session(engine) as session:
        session.feed(TOKENS)
        for _ in range(3):
            fork = session.fork()
            with pytest.raises(OutOfDeviceMemory, match="forking a session: bm_malloc_device_byte"):
                session.fork()
            with pytest.raises(OutOfDeviceMemory, match="starting a session: bm_malloc_device_byte"):
                Session(engine)
            fork.close()
        np.testing.assert_array_equal(session.feed([5]), expected([*TOKENS, 5])[0][-1])


def test_an_old_libsophon_serves_without_its_optional_functions(tmp_path_factory, libsophon, bmodel):
    """What can do without them does; what cannot names function, file, version and remedy."""
    assert libsophon
    missing = ("bmrt_get_flags", "bm_memcpy_d2d_byte")
    old = fake_board(tmp_path_factory.mktemp("old"), without=missing)
    with Engine.open(old, [bmodel]) as engine, Session(engine) as session:
        assert engine.versions.runtime_flags is None
        session.feed(TOKENS)
        words = (
            rf"{old.folder}/libbmlib.so \(libbmlib_version:0.0.0, fake\) has no bm_memcpy_d2d_byte: this libsophon is "
            "older than needed for forking a session .*Update libsophon"
        )
        with pytest.raises(FunctionMissing, match=words):
            session.fork()
        np.testing.assert_array_equal(session.feed([5]), expected([*TOKENS, 5])[0][-1])


@pytest.mark.parametrize("files", ["one", "many"])
def test_nets_of_blocks_give_what_the_whole_net_gives(libsophon, tmp_path, record, files):
    """Bit for bit, by steps and chunks; hidden values stay on the device, and one synchronisation ends a chain."""
    model = FakeModel(layers=5)
    nets = [*model.blocks(), *model.blocks(4), *FakeModel(layers=5).blocks(2, every_position=True)]
    if files == "one":
        paths = [write_bmodel(tmp_path / "blocks.bmodel", *nets)]
    else:
        paths = [write_bmodel(tmp_path / f"{net.name}.bmodel", net) for net in nets]
    logits, states = expected(TOKENS, model)
    with (
        Engine.open(libsophon, paths, command=worker_with(FAKE_LOG=record.path)) as engine,
        Session(engine) as session,
    ):
        assert [(net.name, net.tokens) for net in engine.nets] == [("blocks_1", 1), ("blocks_4", 4), ("blocks_2", 2)]
        record.take()
        np.testing.assert_array_equal(session.feed(TOKENS), logits[-1])
        calls = names(record.take())
        assert_same(session.get_state(), states)
        session.reset()
        assert_same(session.feed_all(TOKENS), logits)
    chain = ["memcpy_s2d", *["launch_tensor_ex"] * 7, "thread_sync", "memcpy_d2s"]
    assert calls == chain * (len(TOKENS) // 4 + 1)


def test_whole_nets_and_nets_of_blocks_share_a_state(libsophon, tmp_path):
    """A prompt through blocks, its tail through the whole net."""
    path = write_bmodel(tmp_path / "both.bmodel", MODEL.whole(), *MODEL.blocks(16))
    with Engine.open(libsophon, [path]) as engine, Session(engine) as session:
        np.testing.assert_array_equal(session.feed(TOKENS), expected(TOKENS)[0][-1])
        assert [net.name for net in engine.nets] == ["net_1", "blocks_16"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda nets: nets.pop(0), r"missing: \['embed_4'\]"),
        (lambda nets: nets.pop(1), r"missing: \['block_0_4'\]"),
        (lambda nets: nets.pop(-1), r"missing: \['head_4'\]"),
        (lambda nets: nets.append(FakeModel(layers=4).blocks(4)[4]), r"missing: \['block_2_4'\]"),
        (lambda nets: nets.__setitem__(2, FakeModel(C=192).blocks(4)[2]), r"block_1_4 of .* does not fit: x "),
        (
            lambda nets: nets.__setitem__(2, FakeModel(state_dtype=Dtype.F16).blocks(4)[2]),
            r"block_1_4 of .* does not fit: x ",
        ),
        (
            lambda nets: nets.__setitem__(2, FakeNet(name="block_1_4", inputs=nets[1].inputs, outputs=nets[1].outputs)),
            r"block_1_4 of .* has 4 inputs and 5 outputs; expected 5 and 4",
        ),
        (
            lambda nets: nets.__setitem__(
                0, FakeNet(name="embed_4", inputs=MODEL.blocks(2)[0].inputs, outputs=nets[0].outputs)
            ),
            r"embed_4 of .* takes 2 tokens; expected 4",
        ),
    ],
    ids=["no embed", "no first block", "no head", "a gap", "another width", "another type", "two first blocks", "T"],
)
def test_nets_of_blocks_that_do_not_fit_are_refused(libsophon, tmp_path, change, words):
    """Before anything is launched, by the name of the net."""
    nets = MODEL.blocks(4)
    change(nets)
    with pytest.raises(BadBmodel, match=words):
        Engine.open(libsophon, [write_bmodel(tmp_path / "a.bmodel", *nets)])


@pytest.mark.parametrize(
    ("nets", "options", "words"),
    [
        ([MODEL.whole()], {"chip": "BM1688"}, r"is for BM1688; the device is BM1684X"),
        ([MODEL.whole()], {"chip": ""}, r"is for a chip that it does not name"),
        (
            [MODEL.whole()],
            {"refuse": "what is this"},
            r"refused by the library(.|\n)*compiler 2\.2\+v9(.|\n)*what is this",
        ),
        ([FakeModel(addr_mode=7).whole()], {}, r"unknown addressing mode 7. It was made by compiler 2\.2\+v9.*newer"),
        ([], {}, "holds no net with a new name"),
        ([FakeNet(name="odd", inputs=(), outputs=())], {}, "net odd of .* has 0 inputs and 0 outputs"),
        ([MODEL.whole(), FakeModel(vocabulary=99).whole(4)], {}, "differ in vocabulary: 320 and 99"),
    ],
    ids=["chip", "no chip", "refused", "addressing mode", "no nets", "another net", "disagreement"],
)
def test_bmodels_that_cannot_run_are_refused(libsophon, tmp_path, record, nets, options, words):
    """With a reason, and before anything is launched."""
    path = write_bmodel(tmp_path / "a.bmodel", *nets, compiler="2.2+v9.9.9-20300101", **options)
    with pytest.raises(BadBmodel, match=words):
        Engine.open(libsophon, [path], command=worker_with(FAKE_LOG=record.path))
    assert not [call for call in record.take() if "launch" in call.name]


@pytest.mark.parametrize("changes", [{"stages": 2}, {"dynamic": True}], ids=["stages", "dynamic"])
def test_nets_of_several_shapes_are_refused(libsophon, tmp_path, changes):
    """Every net has one shape."""
    whole = MODEL.whole()
    net = FakeNet(name=whole.name, inputs=whole.inputs, outputs=whole.outputs, **changes)
    with pytest.raises(BadBmodel, match=r"has 2 stages|is dynamic"):
        Engine.open(libsophon, [write_bmodel(tmp_path / "a.bmodel", net)])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("bm_dev_request@1=1", "opening device 0 .* bm_dev_request failed with status 1: not ready"),
        ("bm_malloc_device_byte@1=2", "reserving memory .* bm_malloc_device_byte failed with status 2: failure"),
        ("bm_thread_sync@2=3", "running net_1: bm_thread_sync failed with status 3: timeout"),
        ("bmrt_launch_tensor_ex@2=1", "running net_1: bmrt_launch_tensor_ex failed: it returned false"),
        ("bm_memcpy_d2s@2=6", "running net_1: bm_memcpy_d2s failed with status 6: bad data"),
    ],
)
def test_a_status_is_told_with_call_and_meaning(libsophon, bmodel, fault, words):
    """Whichever call fails."""

    def use():
        with (
            Engine.open(libsophon, [bmodel], command=worker_with(FAKE_FAULTS=fault)) as engine,
            Session(engine) as session,
        ):
            session.feed([1])
            session.feed([2])

    with pytest.raises(DeviceError, match=words):
        use()


def test_lack_of_memory_is_a_fault_of_its_own(libsophon, bmodel):
    """A bmodel's edges do not fit."""
    with pytest.raises(OutOfDeviceMemory, match="reserving memory for tokens and logits of net_1"):
        Engine.open(libsophon, [bmodel], command=worker_with(FAKE_MEMORY=100))
