"""A run that dies loses the check that was under way and no more; ``--resume`` goes on, and refuses another run."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from compile.toolchain import RECEIPT, Toolchain
from harness.gate.finding import Key
from harness.records import FolderBusyError, FolderLock, RunWriter
from harness.resume import ResumeError, has_failed, take_up
from reports.schema import Expected, Outcome, read
from tests.a_receipt import a_receipt
from tests.gate_runs import DECODE, a_record, a_run, failed

ROOT = Path(__file__).parent.parent
SELECTION = ("--grid", "smoke", "-k", "round_trip or known_enc or longest or (decode and (from_zero or from_random))")
CHECKS = 5


@pytest.fixture(autouse=True)
def _toolchain(tmp_path, monkeypatch):
    """One that is not used."""
    cache = tmp_path / "cache"
    found = Toolchain(cache / "toolchains" / "1.30.2-0", a_receipt())
    found.root.mkdir(parents=True)
    (found.root / RECEIPT).write_bytes(msgspec.json.encode(found.receipt))
    monkeypatch.setenv("RWKV_TPU_CACHE", str(cache))


def suites(tmp_path, *arguments, **told):
    """``pytest suites/`` on nets computed in torch, in a process of its own; *told* is of :mod:`tests.torch_device`."""
    command = [sys.executable, "-m", "pytest", str(ROOT / "suites"), "--rootdir", str(ROOT), "-c"]
    command += [str(ROOT / "pyproject.toml"), "-p", "torch_device", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **told}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)


def the_run(tmp_path):
    """The folder of the only run, and its records."""
    (folder,) = (tmp_path / "runs").iterdir()
    return folder, read(folder / "records.jsonl")


@pytest.mark.parametrize(
    ("told", "recorded", "status"),
    [
        pytest.param({"KILL_AT": "3"}, 3, -signal.SIGKILL, id="killed"),
        pytest.param({"CTRL_C_AT": "1"}, 1, 2, id="Ctrl-C", marks=pytest.mark.long),
        pytest.param({"FULL_AT": "4"}, 4, 3, id="full disk", marks=pytest.mark.long),
    ],
)
def test_a_run_that_is_cut_short(tmp_path, told, recorded, status):
    """Every check before is recorded, whole; the run goes on behind them, and each check is made once."""
    done = suites(tmp_path, *SELECTION, **told)
    assert done.returncode == status, done.stdout[-4000:]
    folder, before = the_run(tmp_path)
    assert before.interrupted
    assert before.cut_line is None
    assert len(before.records) == recorded
    if status > 0:
        assert f"pytest suites/ --resume {folder}" in " ".join((done.stdout + done.stderr).split())
    (folder / "samples.jsonl").write_bytes(b"{}\n{")
    done = suites(tmp_path, *SELECTION, "--resume", folder)
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"{recorded} checks are finished, {CHECKS - recorded} are left" in done.stdout
    assert "the last line of its samples" in done.stdout
    assert (folder / "samples.jsonl").read_bytes() == b"{}\n"
    _, after = the_run(tmp_path)
    assert after.records[:recorded] == before.records
    assert (after.run.id, len(after.run.resumed), after.run.checks) == (before.run.id, 1, CHECKS)
    assert set(Counter((one.case, one.suite, one.check) for one in after.records).values()) == {1}
    assert (after.end.records, after.end.outcomes) == (CHECKS, {"passed": CHECKS})
    assert f"All {CHECKS} checks passed" in (folder / "index.html").read_text()
    assert len((folder / "records.csv").read_text().splitlines()) > CHECKS


@pytest.mark.long
def test_a_finished_run(tmp_path):
    """Nothing is left to do, its options hold without being typed; reports are written anew, old failures count."""
    options = (*SELECTION, "--known", "none")
    assert suites(tmp_path, *options).returncode == 0
    folder, before = the_run(tmp_path)
    text = (folder / "records.jsonl").read_bytes()
    (folder / "index.html").unlink()
    done = suites(tmp_path, *SELECTION[2:], "--resume", folder / "records.jsonl")
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"{CHECKS} checks are finished, 0 are left" in done.stdout
    assert (folder / "index.html").is_file()
    assert (folder / "records.jsonl").read_bytes() == text
    old = msgspec.structs.replace(before.records[0], outcome=Outcome.FAILED)
    _write(folder, before.run, old, *before.records[1:])
    done = suites(tmp_path, *SELECTION[2:], "--resume", folder)
    assert done.returncode == 1, done.stdout[-4000:]
    assert the_run(tmp_path)[1].end.exit_status == 1


def test_another_checkpoint(tmp_path):
    """Refused at once, with the difference; nothing is touched."""
    suites(tmp_path, *SELECTION, KILL_AT="1")
    folder, _ = the_run(tmp_path)
    text = (folder / "records.jsonl").read_bytes()
    other = tmp_path / "other.safetensors"
    shutil.copy(ROOT / "models" / "tiny.safetensors", other)
    with other.open("r+b") as file:  # the last weight
        file.seek(-1, os.SEEK_END)
        file.write(b"\x3c")
    done = suites(tmp_path, *SELECTION, "--resume", folder, "--checkpoint", other)
    assert done.returncode == 4, done.stdout[-4000:]
    assert "checkpoint.sha256 was bdc0e6fe17f2" in done.stderr
    assert (folder / "records.jsonl").read_bytes() == text
    assert list((tmp_path / "runs").iterdir()) == [folder]


FILL = """
import resource, signal, sys
from pathlib import Path
from harness.records import RunWriter
from tests.gate_runs import a_record, a_run
writer = RunWriter(Path(sys.argv[1]), a_run())
writer.add(a_record())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = writer.path.stat().st_size + 100
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    writer.add(a_record(check="b"))
except OSError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    writer.add(a_record(check="c"))
"""


def test_a_full_disk_leaves_no_half_line(tmp_path):
    """The kernel takes a part of a record: it is taken back, so that what is written behind it later can be read."""
    subprocess.run([sys.executable, "-c", FILL, tmp_path / "r"], check=True, cwd=ROOT)
    assert [one.check for one in read(tmp_path / "r" / "records.jsonl").records] == ["from_zero_state", "c"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {"name": "default"}}, "grid.name was smoke, and is default"),
        ({"toolchain": {"version": "1.31"}}, "toolchain.version was 1.30.2, and is 1.31"),
        ({"harness": {"commit": "c1"}}, "harness.commit was c0, and is c1"),
        ({"options": {"repeats": "3"}}, "options.repeats was absent, and is 3"),
        ({"limits_sha256": "l1"}, "limits_sha256 was l0, and is l1"),
        ({"checks": 4}, "5 checks were asked for, and now 4 are"),
    ],
)
def test_another_run(tmp_path, changes, words):
    """Whatever tells it from the one that was begun is named."""
    earlier = take_up(_write(tmp_path / "r", a_run(checks=5), a_record()))
    earlier.refuse_another(a_run(checks=5, id="r1", started="later", command=("pytest", "--resume")))
    with pytest.raises(ResumeError, match=words):
        earlier.refuse_another(a_run(**({"checks": 5} | changes)))


def test_other_checks(tmp_path):
    """A finished check that is not among those asked for now is named: its record would count for nothing."""
    earlier = take_up(_write(tmp_path / "r", a_run(), a_record(), a_record(check="b")))
    earlier.refuse_strangers([Key(DECODE, "parity", check) for check in ("from_zero_state", "b", "c")])
    with pytest.raises(ResumeError, match=f"1 of its finished checks are not .*such as {DECODE} parity b"):
        earlier.refuse_strangers([Key(DECODE, "parity", "from_zero_state")])


def _write(folder, run, *records):
    shutil.rmtree(folder, ignore_errors=True)
    writer = RunWriter(folder, run)
    for record in records:
        writer.add(record)
    writer.close()
    return folder


def canary(outcome, when="before the first case"):
    """A record of the canary."""
    return a_record("", f"canary {when}", suite="device", outcome=outcome)


INFRA, PASSED = Outcome.INFRA, Outcome.PASSED


def test_what_is_made_again(tmp_path):
    """Checks without a verdict; and, where the board fell sick, those since its last good canary."""
    records = [canary(PASSED), a_record(), failed(check="other"), a_record(check="third", outcome=INFRA)]
    earlier = take_up(_write(tmp_path / "r", a_run(), *records))
    assert earlier.kept == tuple(records[:3])
    assert {key.check for key in earlier.done} == {"from_zero_state", "other"}
    assert earlier.dropped == 1
    records = [
        canary(PASSED),
        a_record(),
        canary(PASSED, "after it"),
        a_record(check="other"),
        canary(INFRA, "at last"),
    ]
    earlier = take_up(_write(tmp_path / "r", a_run(), *records))
    assert earlier.kept == tuple(records[:3])
    assert take_up(_write(tmp_path / "r", a_run(), canary(INFRA), a_record())).kept == ()


def test_setup_and_teardown(tmp_path):
    """A check that failed in its setup is finished; what failed in its teardown, too."""
    records = [failed(check="a (setup)"), a_record(check="b"), failed(check="b (teardown)")]
    done = take_up(_write(tmp_path / "r", a_run(), *records)).done
    assert {key.check for key in done} == {"a", "b"}


def test_what_makes_a_run_fail():
    """Failures, no verdict, and passes that were not expected."""
    expected = msgspec.structs.replace(a_record(), expected=Expected(reason="r"))
    assert [has_failed(one) for one in (a_record(), failed(), a_record(outcome=INFRA), expected)] == [0, 1, 1, 1]


def test_a_cut_line_is_dropped(tmp_path):
    """Half a record, as a kill in the middle of a write leaves it, goes; what is before it stays."""
    folder = _write(tmp_path / "r", a_run(), a_record())
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b'{"type":"record","case":"x"')
    earlier = take_up(folder)
    assert (earlier.cut_line, earlier.kept) == (3, (a_record(),))
    RunWriter(folder, earlier.run, kept=earlier.kept, lock=FolderLock(folder)).add(a_record(check="b"))
    assert read(folder / "records.jsonl").records == (a_record(), a_record(check="b"))


def test_a_run_that_cannot_be_trusted(tmp_path):
    """None at all; or a line that makes no sense in the middle, which is no kill's doing: refused by file and line."""
    with pytest.raises(ResumeError, match=r"should be a run's folder, but records\.jsonl cannot be read: No such file"):
        take_up(tmp_path)
    folder = _write(tmp_path / "r", a_run(), a_record())
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b"nonsense\n")
    with pytest.raises(ResumeError, match=r"records\.jsonl:3: .*start a new run"):
        take_up(folder)


def test_one_writer_at_a_time(tmp_path):
    """A run that is still being written is not gone on with; one whose process is gone is."""
    writer = RunWriter(tmp_path / "r", a_run())
    with pytest.raises(FolderBusyError, match="still being written"):
        FolderLock(writer.folder)
    writer.close()
    FolderLock(writer.folder).release()
