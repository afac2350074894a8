"""The whole way of ``--device 0``, from option to record, on a stand-in; and a sick one, which judges nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.device import quarantine
from harness.device.board import locate_board
from harness.device.lock import BoardLock
from harness.device.place import place_of
from harness.device.stand_in import make_stand_in
from reports.schema import Outcome, Stage, read

ROOT = Path(__file__).parent.parent
LABEL = "simulator (stand-in for board 0)"

pytestmark = pytest.mark.toolchain


@pytest.fixture
def stand_in(toolchain, tmp_path):
    """A stand-in; what is kept about it goes with it."""
    folder = tmp_path / "stand-in"
    make_stand_in(folder, toolchain.libraries)
    yield folder
    shutil.rmtree(place_of(locate_board(0, folder)).state_folder, ignore_errors=True)


def run_decode(tmp_path, stand_in, *arguments):
    """Parity of the decode graph on a stand-in, in a process of its own; return its end and its records."""
    runs = tmp_path / f"runs{len(list(tmp_path.iterdir()))}"
    command = [sys.executable, "-m", "pytest", str(ROOT / "suites"), "--rootdir", str(ROOT)]
    command += ["-c", str(ROOT / "pyproject.toml"), "--device", "0", "--libsophon", str(stand_in), "--grid", "smoke"]
    command += ["-k", "(parity and decode and zero) or longest", "--runs", str(runs), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTHONPATH"] = str(ROOT / "tests")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=900
    )
    files = list(runs.glob("*/records.jsonl"))
    return done, read(files[0]) if files else None, files[0].parent if files else None


def test_from_option_to_record(tmp_path, stand_in):
    """It passes, with a canary on both sides, and every record and page says that it is the simulator."""
    done, run, folder = run_decode(tmp_path, stand_in)
    assert done.returncode == 0, done.stdout[-8000:]
    assert f"BM1684X {LABEL}" in done.stdout
    assert run.run.target == LABEL
    assert {record.target for record in run.records} == {LABEL}
    assert {record.outcome for record in run.records} == {Outcome.PASSED}
    device = [record for record in run.records if record.suite == "device"]
    assert [record.check for record in device] == ["canary before the first case", "canary after the last case"]
    assert all("canary_step_ms" not in record.metrics for record in device)  # a simulator's time is no figure
    assert all(record.runtime["kind"] == "cmodel" for record in run.records if record.runtime)
    for readings in (run.run.health, run.end.health):
        assert {reading.value for reading in readings} == {None}
        assert all("simulator" in reading.why_unavailable for reading in readings)
    page = (folder / "index.html").read_text()
    assert LABEL in page
    assert "BM1684X board 0" not in page
    assert LABEL in (folder / "records.csv").read_text()


def test_a_canary_with_another_answer(tmp_path, stand_in):
    """Its known answer spoilt on purpose: no case is judged, later runs do not even try, until it is lifted."""
    done, run, _ = run_decode(tmp_path, stand_in)
    assert done.returncode == 0, done.stdout[-8000:]
    place = place_of(locate_board(0, stand_in))
    file = place.state_folder / "canary.json"
    known = json.loads(file.read_text())
    for entry in known.values():
        entry["sha256"] = "0" * 64
    file.write_text(json.dumps(known))
    for attempt in ("the canary fails", "it is in quarantine"):
        done, run, _ = run_decode(tmp_path, stand_in)
        assert done.returncode == 1, attempt
        cases = [record for record in run.records if record.case]
        assert {record.outcome for record in cases} == {Outcome.INFRA}, attempt
        assert all("not bit for bit" in record.message for record in cases)
        assert f"rwkv-tpu doctor --lift 0 --libsophon {stand_in}" in done.stdout
        assert [record.outcome for record in run.records if record.suite == "tokenizer"] == [Outcome.PASSED]
        assert run.end.exit_status == 1
    assert quarantine.look(place.state_folder) is not None
    assert "canary before the first case" not in {record.check for record in run.records}


def test_a_case_that_dies_on_a_healthy_board(tmp_path, stand_in):
    """The canary sings after it, so the case is to blame; the cases after it go on with a new worker."""
    done, run, _ = run_decode(tmp_path, stand_in, "-p", "killing_worker", "-k", "parity and decode and from")
    assert done.returncode == 1, done.stdout[-8000:]
    dead, alive = (record for record in run.records if record.case)
    assert (dead.outcome, dead.stage, alive.outcome) == (Outcome.FAILED, Stage.RUN, Outcome.PASSED)
    assert "killed by SIGKILL" in dead.message
    canaries = [record for record in run.records if record.suite == "device"]
    assert {record.outcome for record in canaries} == {Outcome.PASSED}
    assert canaries[1].check == "canary after test_from_zero_state[decode-F16-chunk]"
    assert len(canaries) == 3


def test_a_board_that_falls_sick_at_the_end(tmp_path, stand_in):
    """Every case has passed, and the canary after them fails: that is no green run."""
    done, run, folder = run_decode(tmp_path, stand_in, "-p", "souring_canary", "-k", "parity and decode and zero")
    assert {record.outcome for record in run.records if record.case} == {Outcome.PASSED}
    assert (run.records[-1].check, run.records[-1].outcome) == ("canary after the last case", Outcome.INFRA)
    assert done.returncode == 1
    assert run.end.exit_status == 1
    assert "checks without a verdict</h1>" in (folder / "index.html").read_text()
    assert quarantine.look(place_of(locate_board(0, stand_in)).state_folder) is not None


def test_libraries_that_do_not_load(tmp_path, stand_in):
    """Nothing is judged, what needs no board is, and the board is not blamed."""
    for name in ("libbmlib_bm1684x.so.0", "libbmlib.so"):
        link = stand_in / "lib" / name
        link.unlink()
        link.write_bytes(b"\x7fELF that would open libcmodel.so")
    done, run, _ = run_decode(tmp_path, stand_in)
    assert done.returncode == 1, done.stdout[-8000:]
    assert {record.outcome for record in run.records if record.case} == {Outcome.INFRA}
    assert [record.outcome for record in run.records if record.suite == "tokenizer"] == [Outcome.PASSED]
    assert all(record.stage is None for record in run.records if record.case)
    assert "INFRA, no verdict on the compiler" in done.stdout
    assert "do not load" in done.stdout
    assert quarantine.look(place_of(locate_board(0, stand_in)).state_folder) is None


def test_a_board_in_use(tmp_path, stand_in):
    """A second run is refused at once, and told who has the board; listing tests disturbs nobody."""
    with BoardLock(locate_board(0, stand_in).name):
        done, run, _ = run_decode(tmp_path, stand_in)
        assert done.returncode == 4
        assert f"in use by process {os.getpid()}" in done.stderr
        assert run is None
        done, _, _ = run_decode(tmp_path, stand_in, "--collect-only", "-q")
        assert done.returncode == 0, done.stdout
