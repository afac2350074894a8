"""Boards: found, locked, read, judged and quarantined. No board and no simulator is needed here."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.compiler import CompileError
from compile.compiler import Stage as CompileStage
from harness.device import health, quarantine, sensors
from harness.device.board import BoardKind, NoBoardError, is_simulator, locate_board
from harness.device.canary import TIMES_SLOWER, Answer, forget, judge
from harness.device.guard import Guard
from harness.device.lock import BoardBusyError, BoardLock
from harness.device.place import Place, open_place, place_of
from harness.device.stand_in import StandInError, make_stand_in
from reports.schema import Outcome, Stage
from runtime.faults import LibraryMissing, WorkerDied
from runtime.libraries import Kind
from tests.device_trees import LIBRARIES, PCIE, SOC, TOOLS, write_tree

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("RWKV_TPU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def simulator(tmp_path):
    """Files named like the simulator's libraries, one of which says what it would open."""
    folder = tmp_path / "tpu_mlir" / "lib"
    folder.mkdir(parents=True)
    for name in ("libbmlib_bm1684x.so.0", "libbmrt.so.1.0", "libcmodel_bm1684x.so"):
        (folder / name).write_bytes(b"\x7fELF ... libcmodel.so\0 ...")
    return folder


@pytest.mark.parametrize(
    ("number", "nodes", "kind"),
    [(1, ["bm-sophon1"], BoardKind.PCIE), (0, ["bm-sophon0"], BoardKind.PCIE), (0, ["bm-tpu0"], BoardKind.SOC)],
)
def test_boards_are_found(tmp_path, number, nodes, kind):
    """A card by its node, an SoC board by its chip's; both with libsophon's libraries, called by their number."""
    board = locate_board(number, root=write_tree(tmp_path / "root", {}, nodes))
    assert (board.kind, board.simulated, board.label) == (kind, False, str(number))
    assert board.libraries.kind is Kind.BOARD
    assert place_of(board).watched


def test_a_recovery_is_offered_as_a_command(tmp_path):
    """Each kind of board has its own, with the number in it."""
    root = write_tree(tmp_path, {}, ["bm-sophon11", "bm-tpu0"])
    assert "bm-smi --dev=0xb --recovery" in locate_board(11, root=root).recovery
    assert "reboot" in locate_board(0, root=root).recovery


def test_no_board(tmp_path):
    """All that was looked for is named, and what to do."""
    with pytest.raises(NoBoardError) as error:
        locate_board(3, root=tmp_path)
    for word in ("libbmlib.so", "libbmrt.so", "bm-sophon3", "--device cmodel", "rwkv-tpu doctor"):
        assert word in str(error.value)


def test_another_libsophon(tmp_path):
    """It may be given as the folder or as its folder of libraries."""
    root = write_tree(tmp_path / "root", {}, ["bm-sophon0"], libraries=False)
    other = write_tree(tmp_path / "other", {}) / LIBRARIES
    for given_as in (other, other.parent):
        assert locate_board(0, given_as, root).libraries.folder == other


def test_a_stand_in_says_what_it_is(tmp_path, simulator):
    """Laid out like libsophon, accepted as board 0 without a device node, and never called a board."""
    folder = make_stand_in(tmp_path / "stand-in", simulator)
    board = locate_board(0, tmp_path / "stand-in", tmp_path)
    place = place_of(board)
    assert place.label == "simulator (stand-in for board 0)"
    assert place.simulated
    assert board.libraries.kind is Kind.CMODEL
    assert "board 0 (" not in place.description
    assert (folder / "libbmlib.so").resolve() == simulator / "libbmlib_bm1684x.so.0"
    make_stand_in(tmp_path / "stand-in", simulator)  # renewed
    with pytest.raises(NoBoardError, match="one board, number 0"):
        locate_board(1, tmp_path / "stand-in", tmp_path)


def test_the_simulator_is_known_by_its_library(tmp_path, simulator):
    """A folder that only looks like libsophon's, without our note, is recognised all the same."""
    folder = make_stand_in(tmp_path / "stand-in", simulator)
    (tmp_path / "stand-in" / "README").unlink()
    assert is_simulator(folder)
    assert not is_simulator(write_tree(tmp_path / "real", {}) / LIBRARIES)


def test_two_stand_ins_are_two_machines(tmp_path, simulator):
    """Neither shares locks and quarantine with the other, nor with board 0."""
    names = set()
    for name in ("one", "two"):
        make_stand_in(tmp_path / name, simulator)
        names.add(locate_board(0, tmp_path / name, tmp_path).name)
    assert len(names | {"board-0"}) == 3


def test_stand_ins_are_not_made_over_other_things(tmp_path, simulator):
    """A folder with something else in it is left alone; half a simulator is refused."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(StandInError, match="name a new folder"):
        make_stand_in(tmp_path / "mine", simulator)
    (simulator / "libbmrt.so.1.0").unlink()
    with pytest.raises(LibraryMissing, match=r"libbmrt\.so\.1\.0"):
        make_stand_in(tmp_path / "new", simulator)


@pytest.mark.parametrize(
    ("device", "libsophon", "message"),
    [("tpu", None, "should be 'cmodel' or the number"), ("cmodel", "x", "--device N"), ("²", None, "should be")],
)
def test_places_that_are_none(tmp_path, device, libsophon, message):
    """The option is named, and what would do."""
    with pytest.raises(ValueError, match=message):
        open_place(device, libsophon and Path(libsophon), tmp_path)


HOLD = """
import sys
from pathlib import Path
from harness.device.lock import BoardLock
BoardLock("board-0", Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_one_at_a_time(tmp_path):
    """A second process is refused and told who holds the board; death, even by SIGKILL, frees it."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        lock = BoardLock("board-0", tmp_path)
        assert lock.held()
        with pytest.raises(BoardBusyError, match=f"board-0 is in use by process {holder.pid} since .*: -c"):
            lock.acquire()
        BoardLock("board-1", tmp_path).acquire().release()
        holder.kill()
    assert not lock.held()
    with lock:
        assert lock.holder().pid == os.getpid()
        with pytest.raises(BoardBusyError):
            BoardLock("board-0", tmp_path).acquire()
    BoardLock("board-0", tmp_path).acquire().release()


def test_a_lock_is_for_every_user(tmp_path):
    """Whatever the umask of the first: a lock that others cannot open would keep them out for good."""
    before = os.umask(0o077)
    try:
        BoardLock("board-0", tmp_path).acquire().release()
    finally:
        os.umask(before)
    assert (tmp_path / "rwkv-tpu-board-0.lock").stat().st_mode & 0o777 == 0o666


def test_a_lock_is_no_link(tmp_path):
    """In a folder that all may write to, somebody may have put a link there: nothing is written through it."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "rwkv-tpu-board-0.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"):
        BoardLock("board-0", tmp_path).acquire()
    assert (tmp_path / "precious").read_text() == "precious"


def readings(root, number=0):
    """What a tree gives, by name."""
    return {reading.name: reading for reading in health.read_health(locate_board(number, root=root))}


def test_health_of_a_card(tmp_path):
    """Each value has its unit and its file; what the card does not have is unavailable, with the reason."""
    found = readings(write_tree(tmp_path, PCIE, ["bm-sophon1"]), 1)
    assert (found["chip_temperature"].value, found["chip_temperature"].unit) == (52.0, "C")
    assert found["chip_temperature"].source.endswith("card0/bmsophon1/chip_temp")
    assert found["board_temperature"].value == 41.0
    assert found["board_power"].value == 24.0
    assert found["driver"].value == "release version:0.5.1   release date: 20240820-101010"
    assert found["firmware"].value == "a1b2c3d_2024-08-20"
    assert found["boot_loader"].value == "BL1: v2.7; BL2: v2.7"
    assert (found["tpu_power"].value, found["tpu_power"].why_unavailable) == (None, "says 'N/A'")
    assert "no file" in found["memory_used"].why_unavailable
    assert health.remarks(tuple(found.values())) == ["the clock is at 800 MHz of 1000: throttled, or left low"]


def test_health_of_an_soc_board(tmp_path):
    """Linux's own places: thousandths of a degree, the heap of the TPU."""
    found = readings(write_tree(tmp_path, SOC, ["bm-tpu0"]))
    assert found["chip_temperature"].value == 47.321
    assert found["board_temperature"].value == 39.0
    assert (found["memory_total"].value, found["memory_used"].value) == (4141875200.0, 1048576.0)
    assert found["tpu_usage"].value == 13.0
    assert found["board_power"].value is None
    assert "bm_version" in found["firmware"].why_unavailable
    assert health.remarks(tuple(found.values())) == []


@pytest.mark.parametrize("node", ["bm-tpu0", "bm-sophon0"])
def test_health_from_the_vendors_tools(tmp_path, node):
    """They are found beside libsophon too, asked for this board, and only where their output tells."""
    found = readings(write_tree(tmp_path, SOC | PCIE | TOOLS, [node]))
    assert (found["bm_smi"].value, found["bm_smi"].source.split()[0]) == ("1684X-SOC --start_dev=0 800M", "bm-smi")
    if node == "bm-tpu0":
        assert found["firmware"].value == "SophonSDK version: v24.04.01; BL2 v2.7(release):1"
        assert found["boot_loader"].value == "BL2 v2.7(release):1"
    (tmp_path / "opt/sophon/libsophon-current/bin/bm-smi").write_text("#!/bin/sh\nexit 1\n")
    found = readings(tmp_path)
    assert (found["bm_smi"].value, "did not end well: bm-smi" in found["bm_smi"].why_unavailable) == (None, True)


def test_health_of_nothing(tmp_path):
    """Without a single file every reading is unavailable, and says which file was looked for."""
    for nodes in (["bm-sophon0"], ["bm-tpu0"]):
        found = readings(write_tree(tmp_path / nodes[0], {}, nodes))
        assert {reading.value for reading in found.values()} == {None}
        assert all(reading.why_unavailable for reading in found.values())


garbage = st.one_of(st.text(max_size=200), st.from_regex(r"[+-]?\d{1,400}(\.\d*)? ?(C|W|MHz|mV|)\n?", fullmatch=True))


@given(garbage)
def test_parsers_take_anything(text):
    """No text raises; what comes out is a finite number or nothing."""
    for parsed in (
        sensors.parse_number(text, "C"),
        sensors.degrees_of_thousandths(text),
        sensors.heap_bytes(text, "used"),
        sensors.heap_bytes(f"npu heap size:{text} bytes, used:{text} bytes", "total"),
    ):
        assert parsed is None or abs(parsed) < float("inf")
    assert sensors.one_line(text) != ""


@given(st.binary(max_size=300))
def test_files_may_hold_anything(tmp_path_factory, content):
    """Nor do bytes, in any of the files."""
    root = write_tree(tmp_path_factory.mktemp("root"), PCIE | SOC, ["bm-sophon1", "bm-tpu0"])
    for name in PCIE | SOC:
        (root / name).write_bytes(content)
    assert len(readings(root, 0)) == len(readings(root, 1))


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [("45 C\n", "C", 45.0), ("-5 C", "C", -5.0), ("1000", "MHz", 1000.0), ("45 C", "W", None), ("N/A", "C", None)],
)
def test_numbers_have_their_unit(text, unit, value):
    """A number of another unit is not taken for one of ours."""
    assert sensors.parse_number(text, unit) == value


def an_answer(**changes):
    """A good answer of a canary."""
    return Answer(**({"key": "k", "sha256": "a" * 64, "step_ms": 0.2} | changes))


def test_the_first_good_answer_is_the_known_one(tmp_path):
    """After it the same passes, and other bits or much more time do not; other libraries begin anew."""
    assert judge(an_answer(), tmp_path, timed=True) == []
    assert judge(an_answer(step_ms=0.2 * TIMES_SLOWER), tmp_path, timed=True) == []
    (bits,) = judge(an_answer(sha256="b" * 64), tmp_path, timed=True)
    assert "not bit for bit" in bits
    (slow,) = judge(an_answer(step_ms=0.61), tmp_path, timed=True)
    assert "takes 0.610 ms a step" in slow
    (never,) = judge(an_answer(step_ms=float("nan")), tmp_path, timed=True)
    assert "nan ms" in never
    assert judge(an_answer(step_ms=9.0), tmp_path, timed=False) == []
    assert judge(an_answer(key="other", sha256="b" * 64), tmp_path, timed=True) == []
    forget(tmp_path)
    assert judge(an_answer(sha256="b" * 64), tmp_path, timed=True) == []


def test_a_wrong_answer_is_never_the_known_one(tmp_path):
    """Outside the caps it is wrong however often it comes."""
    for _ in range(2):
        (problem,) = judge(an_answer(breaches=["kl_worst_nats=9"]), tmp_path, timed=True)
        assert "wrong: kl_worst_nats=9" in problem
    assert judge(an_answer(), tmp_path, timed=True) == []


def test_a_damaged_known_answer_counts_as_none(tmp_path):
    """Half a file after a power cut must not end every later run."""
    judge(an_answer(), tmp_path, timed=True)
    (tmp_path / "canary.json").write_text('{"k": {"sha')
    assert judge(an_answer(sha256="c" * 64), tmp_path, timed=True) == []


def test_quarantine(tmp_path):
    """It says why and when, outlives the process, and ends when it is lifted."""
    folder = tmp_path / "boards" / "board-0"
    assert quarantine.look(folder) is None
    assert quarantine.lift(folder) is None
    quarantine.put(folder, "it smells")
    assert quarantine.look(folder).reason == "it smells"
    assert quarantine.lift(folder).reason == "it smells"
    assert quarantine.look(folder) is None


@given(st.binary(max_size=100))
def test_a_damaged_quarantine_is_one(tmp_path_factory, content):
    """Whatever is in the file, a board with such a file is not trusted."""
    folder = tmp_path_factory.mktemp("board")
    (folder / "quarantine.json").write_bytes(content)
    assert quarantine.look(folder) is not None


def a_place(opening, **changes):
    """A board that is opened by *opening*."""
    fields = {"label": "0", "name": "board-of-a-test", "description": "a board", "simulated": False, "watched": True}
    return Place(
        **(
            fields
            | {"open": opening, "recovery": "bm-smi --dev=0x0 --recovery", "lift": "rwkv-tpu doctor --lift 0"}
            | changes
        )
    )


class CanaryOfATest:
    """Enough of a canary to be opened."""

    class bmodel:  # noqa: N801 - stands for an attribute
        """Its bmodel."""

        path = Path("canary.bmodel")

        class result:  # noqa: N801 - the same
            """Its result."""

            bmodel_sha256 = "0" * 64


def test_a_board_on_which_the_canary_dies_is_quarantined(monkeypatch, tmp_path):
    """This run and every later one knows, and the message has the commands to paste."""
    monkeypatch.setattr("harness.device.lock.MACHINE_WIDE", tmp_path)

    def opening(_):
        raise WorkerDied("opening device 0: the worker was killed by SIGBUS\n  last words")

    guard = Guard(a_place(opening), CanaryOfATest)
    guard.claim()
    assert guard.sick is None
    record = guard.check("before the first case")
    assert (record.outcome, record.stage, record.suite) == (Outcome.INFRA, Stage.LOAD, "device")
    guard.release()
    later = Guard(a_place(opening), CanaryOfATest)
    later.claim()
    for word in ("killed by SIGBUS", "bm-smi --dev=0x0 --recovery", "rwkv-tpu doctor --lift 0", "quarantine.json"):
        assert word in later.sick
    assert "last words" not in later.sick  # each case shows this: the rest is in the file
    later.release()


def test_a_host_on_which_the_canary_does_not_compile(monkeypatch, tmp_path):
    """It is sick itself: nothing is judged, and the board is not put into quarantine for it."""
    monkeypatch.setattr("harness.device.lock.MACHINE_WIDE", tmp_path)

    def making():
        raise CompileError(CompileStage.LOWER, "decode", "no space left", rerun="x", log=tmp_path / "log")

    (tmp_path / "log").touch()
    place = a_place(None)
    guard = Guard(place, making)
    record = guard.check("before the first case")
    assert record.outcome is Outcome.INFRA
    assert "no space left" in guard.sick
    assert quarantine.look(place.state_folder) is None


def test_a_fault_that_is_not_the_boards(monkeypatch, tmp_path):
    """Libraries that are not there make a run INFRA; the board is not put into quarantine for them."""
    monkeypatch.setattr("harness.device.lock.MACHINE_WIDE", tmp_path)

    def opening(_):
        raise LibraryMissing("not found: libbmrt.so")

    place = a_place(opening)
    guard = Guard(place, CanaryOfATest)
    assert guard.check("before the first case").outcome is Outcome.INFRA
    assert "libbmrt.so" in guard.sick
    assert quarantine.look(place.state_folder) is None


def test_a_busy_board_is_not_claimed(monkeypatch, tmp_path):
    """The second run is refused before it touches anything."""
    monkeypatch.setattr("harness.device.lock.MACHINE_WIDE", tmp_path)
    first, second = (Guard(a_place(None), CanaryOfATest) for _ in range(2))
    first.claim()
    with pytest.raises(BoardBusyError, match="in use by process"):
        second.claim()
    first.release()
    second.claim()
    second.release()
