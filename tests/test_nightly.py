"""Nights: one at a time, judged against the last good one, in order on every way out, and none removed in error."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli import main
from harness.commands import nightly
from harness.gate.rules import load_rules
from harness.nightly import night as night_module
from harness.nightly.night import HISTORY, PAGE, VERDICT, Plan, spend
from harness.nightly.nights import LOCK, NIGHTS, Night, State, baseline_of, begin, keep, nights_of
from harness.nightly.retention import superfluous
from harness.nightly.suites import run_suites, suites_command
from reports.history import History
from reports.schema import Outcome
from tests.gate_runs import PREFILL, MadeRun, a_record

ROOT = Path(__file__).parent.parent

# Suites that write half a run, wait for Ctrl-C, take their time to end, and tell what they heard.
WAITING = """
import pathlib, shutil, sys, time
runs, made, told = map(pathlib.Path, sys.argv[1:])
shutil.copytree(made, runs / "r")
try:
    (told / "started").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    (told / "heard").touch()
    raise
"""
# The nightly, with those, and with threads: each of them is a parent that dies.
STARTING = """
import sys, threading, time
for _ in range(8):
    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
from pathlib import Path
from harness.commands import nightly
waiting, made, told, folder = sys.argv[1:]
nightly.suites_command = lambda runs, arguments: [sys.executable, "-c", waiting, str(runs), made, told]
from harness.cli import main
sys.argv = ["rwkv-tpu", "nightly", folder]
main()
"""


def plan(folder, *runs, **changes):
    """A night whose suites write *runs*, one each launch."""
    left = list(runs)

    def command(night):
        source = folder.parent / f"made-{time.monotonic_ns()}"
        made = left.pop(0)
        made.write(source)
        copy = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
        return [sys.executable, "-c", copy, str(source), str(night / made.run["id"])]

    fields = {"launches": len(runs), "rules": load_rules(), "allow": [], "keep": None, "keep_days": None}
    fields |= {"question": "the same", "first_passes": False}
    return Plan(folder=folder, command=command, say=lambda _: None, **(fields | changes))


def a_run(number, **changes):
    """Run *number*, of one check."""
    started = f"2026-01-{number:02}T00:00:00+0000"
    return MadeRun((a_record(**changes),), {"id": f"r{number}", "started": started})


def breaking(command):
    """The same command, which fails behind its work."""
    python, option, text, *arguments = command
    return [python, option, text + "; sys.exit(1)", *arguments]


def nightly_command(monkeypatch, *arguments):
    """Run ``rwkv-tpu nightly``; return the exit code."""
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "nightly", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code or 0


def wait_for(condition):
    """Wait until something is so; fail where it does not come to it."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "waited for five minutes"
        time.sleep(0.05)


def test_nights_in_a_row(tmp_path, monkeypatch, capsys):
    """The first is a baseline and no pass; a bad one is none; a person can accept it."""
    folder = tmp_path / "n"
    assert spend(plan(folder, a_run(1))) == 3
    first = nights_of(folder)[-1]
    assert baseline_of(nights_of(folder)).name == first.name
    assert "becomes the baseline" in (first.folder / VERDICT).read_text()

    assert spend(plan(folder, a_run(2))) == 0
    second = nights_of(folder)[-1]
    assert second.state.baseline == first.name

    for number in (3, 4):
        assert spend(plan(folder, a_run(number, outcome=Outcome.FAILED))) == 1
        bad = nights_of(folder)[-1]
        assert (bad.state.baseline, bad.state.good) == (second.name, False)
    assert nightly_command(monkeypatch, folder, "--accept", bad.name) == 0
    assert baseline_of(nights_of(folder)).name == bad.name
    assert nightly_command(monkeypatch, folder, "--accept", second.name) == 0
    assert baseline_of(nights_of(folder)).name == second.name
    assert nightly_command(monkeypatch, folder, "--accept", "never") == 4
    assert bad.name in capsys.readouterr().err

    page = (folder / PAGE).read_text()
    assert f"gate 1 against {second.name}" in page
    assert page.index("Latest night, ") < page.index("<table>")
    with History(folder / HISTORY) as history:
        assert [run.id for run in history.runs()] == ["r1", "r2", "r3", "r4"]


def test_a_night_of_many_launches(tmp_path):
    """All launches of a night are one side of the gate."""
    folder = tmp_path / "n"
    assert spend(plan(folder, *map(a_run, (1, 2, 3)))) == 3
    assert spend(plan(folder, *map(a_run, (4, 5)))) == 0
    assert (
        "NEW       " + str(nights_of(folder)[-1].folder) + ": 2 runs"
        in (nights_of(folder)[-1].folder / VERDICT).read_text()
    )


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (MadeRun((a_record(),), {"id": "r1"}, complete=False), 3),
        (MadeRun((), {"id": "r1"}), 3),
        (MadeRun((a_record(),), {"id": "r1"}, mangle=lambda text: b"x" + text), 3),
        (MadeRun((a_record(), a_record(PREFILL, outcome=Outcome.INFRA)), {"id": "r1"}), 4),
        (a_run(1, outcome=Outcome.FAILED), 3),
    ],
    ids=["interrupted", "empty", "unreadable", "infra", "failed"],
)
def test_what_cannot_be_a_baseline(tmp_path, made, code):
    """A night that measured nothing sound is no baseline, even where there is no other."""
    assert spend(plan(tmp_path / "n", made)) == code
    assert baseline_of(nights_of(tmp_path / "n")) is None


def test_suites_that_do_not_run(tmp_path):
    """No run, no pass."""
    nothing = [sys.executable, "-c", "raise SystemExit(4)"]
    assert spend(replace(plan(tmp_path / "n", a_run(1)), command=lambda _: nothing)) == 3
    (night,) = nights_of(tmp_path / "n")
    assert f"Latest night, {night.name}: {night.words}" in (tmp_path / "n" / PAGE).read_text()


def test_suites_that_break_at_the_end(tmp_path):
    """A run that is whole and good, of a process that was not: no pass, and no baseline."""
    good = plan(tmp_path / "n", a_run(1))
    broken = replace(good, command=lambda night: breaking(good.command(night)))
    assert spend(broken) == 4
    assert baseline_of(nights_of(tmp_path / "n")) is None


def test_one_at_a_time(tmp_path, monkeypatch, capsys):
    """A second nightly says so and ends with 4; it makes no night."""
    (tmp_path / "n").mkdir()
    with filelock.FileLock(tmp_path / "n" / ".nightly.lock"):
        assert nightly_command(monkeypatch, tmp_path / "n") == 4
    assert "another rwkv-tpu nightly works there" in capsys.readouterr().err
    assert not (tmp_path / "n" / NIGHTS).exists()


def test_a_fault_of_the_nightly_is_no_regression(tmp_path, monkeypatch, capsys):
    """What nobody foresaw ends with 4 and words; the traceback is kept, the night stays, and the next one runs."""

    def broken(_runs, arguments):
        raise LookupError(f"no way to run {arguments[1]}")

    monkeypatch.setattr(nightly, "suites_command", broken)
    folder = tmp_path / "n"
    for number in (1, 2):
        assert nightly_command(monkeypatch, folder) == 4
        said = capsys.readouterr().err
        assert "error: LookupError: no way to run nightly" in said
        assert "Traceback" not in said
        assert str(folder / nightly.ERRORS) in said
        log = (folder / nightly.ERRORS).read_text()
        assert log.count("Traceback (most recent call last)") == number
        assert "in broken" in log
    assert [night.state.finished for night in nights_of(folder)] == [None]  # the second call went on with it
    assert spend(plan(folder, a_run(1))) == 3


def test_a_fault_with_no_place_for_its_traceback(tmp_path, monkeypatch, capsys):
    """Then it is shown."""

    def broken(_plan):
        raise LookupError("lost")

    monkeypatch.setattr(nightly, "spend", broken)
    (tmp_path / "n").touch()
    assert nightly_command(monkeypatch, tmp_path / "n") == 4
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert "Traceback" in said


@pytest.mark.parametrize("arguments", [["--keep", "0"], ["--kep", "1"], []])
def test_usage_is_no_stale_expectation(arguments, tmp_path, monkeypatch):
    """A mistake in usage ends with 3."""
    assert nightly_command(monkeypatch, *([tmp_path, *arguments] if arguments else [])) == 3


def test_nights_go(tmp_path):
    """The oldest go, their figures stay; the baseline stays, whatever its age."""
    folder = tmp_path / "n"
    for number in (1, 2):
        spend(plan(folder, a_run(number)))
    kept = baseline_of(nights_of(folder)).name
    for number in (3, 4, 5):
        spend(plan(folder, a_run(number, outcome=Outcome.FAILED), keep=2))
    names = [night.name for night in nights_of(folder)]
    assert (len(names), names[0]) == (3, kept)
    assert sorted(path.name for path in (folder / NIGHTS).iterdir()) == names
    with History(folder / HISTORY) as history:
        assert len(history.runs()) == 5
    assert (folder / PAGE).read_text().count("(removed)") == 2


@given(
    ages=st.lists(st.integers(0, 400), max_size=12),
    good=st.sets(st.integers(0, 11)),
    running=st.sets(st.integers(0, 11)),
    count=st.none() | st.integers(1, 12),
    days=st.none() | st.floats(0, 400),
)
def test_retention(ages, good, running, count, days):
    """Never the baseline, the latest or one that runs; all others beyond a limit, and nothing within both."""

    class Made(Night):
        """A night that is not on disk."""

        def is_running(self):
            return int(self.name) in running

    now = datetime(2026, 1, 1, tzinfo=UTC)
    nights = [
        Made(Path(str(index)), State(started=(now - timedelta(days=age)).isoformat(), good=index in good))
        for index, age in enumerate(sorted(ages, reverse=True))
    ]
    removed = {int(night.name) for night in superfluous(nights, now=now, count=count, days=days)}
    baseline = {max(good & set(range(len(nights))), default=-1)}
    safe = baseline | running | {len(nights) - 1}
    by_count = set(range(len(nights) - count)) if count is not None else set()
    by_age = {index for index, age in enumerate(sorted(ages, reverse=True)) if days is not None and age > days}
    assert removed == (by_count | by_age) - safe


def test_what_no_nightly_made_stays(tmp_path):
    """A person's run among the nights, and a night of which a process still has the lock."""
    folder = tmp_path / "n"
    spend(plan(folder, a_run(1)))
    a_run(9).write(folder / NIGHTS / "mine" / "r9")
    busy = folder / NIGHTS / "20200101T000000.000000Z"
    busy.mkdir()
    keep(busy, State(started="2020-01-01T00:00:00+00:00"))
    with (busy / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        spend(plan(folder, a_run(2), keep=1))
        assert busy.is_dir()
    spend(plan(folder, a_run(3), keep=1))
    assert not busy.exists()
    assert (folder / NIGHTS / "mine" / "r9").is_dir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_every_way_out(tmp_path, number):
    """However a night is stopped, its suites hear Ctrl-C and end; the night stays as interrupted, the next one runs."""
    folder, half = tmp_path / "n", MadeRun((a_record(),), {"id": "r1"}, complete=False)
    half.write(tmp_path / "half")
    command = [sys.executable, "-c", STARTING, WAITING, str(tmp_path / "half"), str(tmp_path), str(folder)]
    nightly = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for((tmp_path / "started").exists)
        (night,) = nights_of(folder)
        assert night.is_running()
        os.kill(nightly.pid, number)
        said = nightly.communicate(timeout=60)[1].decode()
        wait_for((tmp_path / "heard").exists)
        wait_for(lambda: not night.is_running())
    finally:
        nightly.kill()
        nightly.communicate()
    if number != signal.SIGKILL:
        assert nightly.returncode == 4, said
        assert "interrupted: the night stays" in said
        assert ">interrupted<" in (folder / PAGE).read_text()
    assert nights_of(folder)[0].state.finished is None  # asked something else, it is not gone on with
    assert spend(plan(folder, a_run(2))) == 3  # there was no good night yet
    assert spend(plan(folder, a_run(3))) == 0


# Suites that write one run and are killed in the second; asked to go on with it, they do.
SECOND = """
import pathlib, shutil, sys, time
runs, made, told, *resume = sys.argv[1:]
told = pathlib.Path(told)
first = not (told / "first").exists()
(told / "first").touch()
if resume:
    shutil.rmtree(resume[1])
    (told / "resumed").write_text(" ".join(resume))
name = "r1" if first else "r2"
whole = first or resume
shutil.copytree(pathlib.Path(made) / (name if whole else "half"), pathlib.Path(runs) / name)
sys.exit(0 if whole else 130)
"""


@pytest.mark.parametrize("question", ["the same", "another"])
def test_an_interrupted_night_goes_on(tmp_path, question):
    """What is done is not done again, the run that was cut short is resumed; asked something else, a night begins."""
    folder, made = tmp_path / "n", tmp_path / "made"
    for number in (1, 2):
        a_run(number).write(made / f"r{number}")
    replace(a_run(2), complete=False).write(made / "half")
    ours = [sys.executable, "-c", SECOND]
    asked = replace(plan(folder), command=lambda runs: [*ours, str(runs), str(made), str(tmp_path)], launches=2)

    def cut(night, command):
        status = run_suites(night, command)
        if status == 130:
            raise KeyboardInterrupt
        return status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(night_module, "run_suites", cut)
        with pytest.raises(KeyboardInterrupt):
            spend(asked)
    (left,) = nights_of(folder)
    assert [run.name for run in left.runs] == ["r1", "r2"]
    said = []
    spend(replace(asked, question=question, say=said.append))
    nights = nights_of(folder)
    if question == "another":
        assert [night.state.question for night in nights] == ["the same", "another"]
        assert not (tmp_path / "resumed").exists()
        return
    assert [night.name for night in nights] == [left.name]
    assert nights[0].state.good
    assert (tmp_path / "resumed").read_text() == f"--resume {left.folder / 'r2'}"
    assert "launch 1 of 2: was done, pytest ended with 0" in said
    assert "launch 2 of 2: gone on with, pytest ended with 0" in said


# Suites that do not go on with a run, as on another machine, and otherwise write one.
REFUSING = """
import shutil, sys
runs, made, *resume = sys.argv[1:]
if resume:
    sys.exit(4)
shutil.copytree(made, runs + "/r2")
"""


@pytest.mark.parametrize(
    "mangle", [bytes, lambda text: text.replace(b'"record"', b'"recorb"')], ids=["refused", "broken"]
)
def test_a_night_that_cannot_go_on(tmp_path, mangle):
    """Where the suites refuse its run, or nobody can read it, another night begins: nothing stays stuck."""
    folder = tmp_path / "n"
    left = begin(folder, "the same")
    replace(a_run(1), complete=False, mangle=mangle).write(left.folder / "r1")
    a_run(2).write(tmp_path / "made")
    ours = [sys.executable, "-c", REFUSING]
    asked = replace(plan(folder, a_run(2)), command=lambda runs: [*ours, str(runs), str(tmp_path / "made")])
    assert spend(asked) == 3  # a first night
    nights = nights_of(folder)
    assert [night.state.finished is None for night in nights] == [True, False]
    assert [run.name for run in nights[-1].runs] == ["r2"]
    assert nights[-1].state.good


def test_another_toolchain_is_another_question(tmp_path, monkeypatch):
    """By its release, and by what is installed under that name."""
    asked = []
    monkeypatch.setattr(nightly, "spend", lambda plan: asked.append(plan.question) or 0)
    monkeypatch.setattr(nightly, "look_up", lambda *_: None)
    for arguments in ([], ["--", "--toolchain", "1.28.1"], ["--launches", "2"], ["--grid", "smoke"], ["--keep", "3"]):
        assert nightly_command(monkeypatch, tmp_path / "n", *arguments) == 0
    monkeypatch.setattr(nightly, "look_up", lambda *_: SimpleNamespace(identity="another"))
    assert nightly_command(monkeypatch, tmp_path / "n") == 0
    assert asked[0] == asked[4]
    assert len(set(asked)) == 5
    assert nightly_command(monkeypatch, tmp_path / "n", "--grid", "nowhere") == 3


@pytest.mark.parametrize(
    ("before", "made", "code"),
    [
        (MadeRun((a_record(),), {"id": "r0"}, complete=False), a_run(1), 0),
        (MadeRun((a_record(), a_record(PREFILL)), {"id": "r0"}), a_run(1), 3),
        (a_run(1), MadeRun((a_record(),), {"id": "r2"}, complete=False), 3),
        (a_run(1), a_run(2, metrics={"kl_mean_nats": 1.0}), 1),
    ],
    ids=["none good yet", "vanished", "interrupted", "worse"],
)
def test_only_a_first_night_can_pass(tmp_path, before, made, code):
    """A vanished case or an interrupted run is no pass, whatever was asked for."""
    spend(plan(tmp_path / "n", before))
    assert spend(plan(tmp_path / "n", made, first_passes=True)) == code


def test_a_first_night_can_pass(tmp_path):
    """Where it is asked for, and sound; nothing else that is not comparable does."""
    assert spend(plan(tmp_path / "n", a_run(1), first_passes=True)) == 0
    assert "a pass because it was asked for" in (nights_of(tmp_path / "n")[0].folder / VERDICT).read_text()
    nothing = [sys.executable, "-c", "raise SystemExit(4)"]
    assert spend(replace(plan(tmp_path / "m", a_run(1), first_passes=True), command=lambda _: nothing)) == 3
    assert spend(replace(plan(tmp_path / "n", a_run(1), first_passes=True), command=lambda _: nothing)) == 3


def test_the_suites_are_found_from_anywhere(tmp_path):
    """The command collects the suites whatever the present folder is."""
    command = suites_command(tmp_path / "runs", ["--collect-only", "-q", "--grid", "nowhere"])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 4
    assert "nowhere" in done.stdout + done.stderr
