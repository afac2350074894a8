"""Two releases side by side: run in turns, gone on with after any end, reported, judged by the gate."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import filelock
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli import main
from harness.commands import release as command
from harness.gate.finding import Kind
from harness.gate.rules import load_rules
from harness.launches import ASIDE, LaunchError, answers
from harness.release import PAGE, REPORT, VERDICT, Plan, compare_releases, turns
from reports.schema import Outcome
from tests.fake_codegen import a_compile, a_profile, codegen_toolchain
from tests.fake_toolchain import fake_toolchain
from tests.gate_runs import COMPILED, DECODE, PREDICTED, PREFILL, MadeRun, a_record, failed, launches

ROOT = Path(__file__).parent.parent
OLD, NEW = "1.0", "2.0"
COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"

# The command, with suites that wait for Ctrl-C half way of the new side, unless the file `free` is there.
STARTING = """
import sys
from pathlib import Path
from harness.commands import release
from tests.fake_toolchain import fake_toolchain
told, folder, made = map(Path, sys.argv[1:])
RUN = '''
import pathlib, shutil, sys, time
source, runs, told = map(pathlib.Path, sys.argv[1:])
name = source.name if source.name == "old" or (told / "free").exists() else "half"
shutil.copytree(source.with_name(name), runs / name)
if name == "half":
    (told / "started").touch()
    time.sleep(60)
'''
def suites_command(runs, arguments):
    return [sys.executable, "-c", RUN, str(made / runs.name), str(runs), str(told)]

release.suites_command = suites_command
release.install_and_say = lambda version: fake_toolchain(told, version)
from harness.cli import main
sys.argv = ["rwkv-tpu", "release", "2.0", "--against", "1.0", "--grid", "smoke", "--out", str(folder)]
main()
"""


def a_side(version, *records, number=0, **run):
    """A run of a release."""
    toolchain = {"version": version, "commit": f"v{version}", "wheel_sha256": f"w{version}", "identity": version}
    made = {"id": f"r{version}-{number}", "started": f"2026-01-01T00:0{number}:00+0000", "toolchain": toolchain}
    return MadeRun(records or (a_record(), a_record(PREFILL)), made | run)


class Suites:
    """In place of the suites: writes runs that are given, one each launch, and remembers what was launched."""

    def __init__(self, tmp_path, old, new):
        self.folder = tmp_path / "made"
        self.left = {"old": list(old), "new": list(new)}
        self.launched = []

    def __call__(self, runs, arguments):
        """Return the command that writes the next run."""
        self.launched.append((runs.name, arguments[arguments.index("--toolchain") + 1]))
        made = self.left[runs.name].pop(0)
        if isinstance(made, int):
            return [sys.executable, "-c", f"raise SystemExit({made})"]
        source = self.folder / f"{len(self.launched)}-{time.monotonic_ns()}"
        made.write(source)
        return [sys.executable, "-c", COPY, str(source), str(runs / f"{made.run['id']}-{len(self.launched)}")]


def plan(tmp_path, suites, **changes):
    """A comparison with fake toolchains; the new one has one option more, and another default."""
    options = {OLD: 'parser.add_argument("--opt", type=int, default=2)'}
    options[NEW] = options[OLD].replace("2)", '3)\nparser.add_argument("--affine", help="on | off")')
    return Plan(
        **{
            "folder": tmp_path / "r",
            "old": OLD,
            "new": NEW,
            "grid": "smoke",
            "device": "cmodel",
            "arguments": [],
            "command": suites,
            "install": lambda version: fake_toolchain(tmp_path / "t", version, options[version]),
            "cache": tmp_path / "cache",
            "launches": 1,
            "rules": load_rules(),
            "allow": [],
            "say": lambda _: None,
        }
        | changes
    )


def release_command(monkeypatch, *arguments):
    """Run ``rwkv-tpu release``; return the exit code."""
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "release", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code or 0


def test_a_comparison(tmp_path):
    """Both run once, the report shows every kind of figure, the page both runs; once more runs nothing."""
    slower = a_record(predicted={"predicted_ms": 0.0275, "predicted_cycles": 27450}, metrics={"kl_worst_nats": 1e-5})
    longer = a_record(PREFILL, compiled={"compile_seconds": 16.5})
    farther = {"metrics": {"kl_worst_nats": 1e-4, "top1_share": 0.9}, "check": "from_random_state"}
    more = a_record(PREFILL, **farther)
    suites = Suites(tmp_path, [a_side(OLD, a_record(), a_record(PREFILL), more)], [a_side(NEW, slower, longer, more)])
    asked = plan(tmp_path, suites)
    assert compare_releases(asked) == 0
    assert suites.launched == [("old", OLD), ("new", NEW)]
    report = (asked.folder / REPORT).read_text()
    assert "Gate: **exit code 0: pass**" in report
    assert f"| `{DECODE}` | 0.0549 → 0.0275 (-49.9 %) | 54,900 → 27,450 (-50.0 %) |" in report
    assert "8.25 → 16.5 (+100.0 %)" in report
    assert "2.0e-05 → 1.0e-05 (-50.0 %)" in report
    assert "1,500,000, the same" in report
    assert "| 1.0e-04, the same | 0.9000, the same |" in report  # the worst over the checks of a case
    assert "| passed | 3 | 3 |" in report
    assert "- `--opt` default changed: `2` → `3`" in report
    assert "- `--affine` added: `AFFINE: on | off`" in report
    assert "Measured on the board" not in report  # nothing was
    page = (asked.folder / PAGE).read_text()
    assert f"r{OLD}-0" in page
    assert f"r{NEW}-0" in page

    assert compare_releases(asked) == 0
    assert len(suites.launched) == 2


@pytest.mark.parametrize(
    ("records", "code"),
    [
        ((a_record(), failed(PREFILL)), 1),
        ((a_record(),), 3),
        ((a_record(), a_record(PREFILL, compiled=COMPILED | {"bmodel_bytes": 9_000_000})), 1),
        ((a_record(), a_record(PREFILL, predicted=PREDICTED | {"predicted_cycles": 1_000_000})), 0),
    ],
    ids=["fails", "vanished", "larger", "dearer by its own estimate"],
)
def test_the_code_is_the_gates(tmp_path, records, code):
    """What the gate says of the two sides is what the command ends with."""
    asked = plan(tmp_path, Suites(tmp_path, [a_side(OLD)], [a_side(NEW, *records)]))
    assert compare_releases(asked) == code
    verdict = (asked.folder / VERDICT).read_text()
    assert verdict.splitlines()[-1].startswith(f"exit code {code}")
    if code == 1 and len(records) == 2 and records[1].outcome is Outcome.FAILED:
        assert "| failed at numerics |" in (asked.folder / REPORT).read_text()


@pytest.mark.parametrize(
    ("by_new", "new", "code", "words"),
    [
        (a_profile(), a_profile(), 0, "| 0.001 | 0.001 | 0.001, the same | nothing |"),
        (a_profile(predicted_cycles=1100), a_profile(predicted_cycles=1100), 0, "0.0011, the same | the estimator |"),
        (a_profile(), a_profile(predicted_cycles=900), 0, "0.0009 (-10.0 %) | the code |"),
        (
            a_profile(predicted_cycles=800),
            a_profile(predicted_cycles=900),
            1,
            "| 0.001 | 0.0008 | 0.0009 (+12.5 %) | the code and the estimator |",
        ),
        ("exit 3", a_profile(predicted_cycles=2000), 0, "not priced: code generation of TPU-MLIR 2.0"),
    ],
    ids=["nothing", "estimator", "code", "both", "not priced"],
)
def test_one_price_for_both(tmp_path, by_new, new, code, words):
    """A change of the estimator is no verdict, one of the code is; what cannot be priced says why and fails nothing."""
    cache = tmp_path / "cache"
    records = [
        a_record(
            bmodel_sha256=a_compile(cache, name, profile), predicted={"predicted_cycles": profile.predicted_cycles}
        )
        for name, profile in (("old", a_profile()), ("new", new))
    ]
    asked = plan(tmp_path, Suites(tmp_path, [a_side(OLD, records[0])], [a_side(NEW, records[1])]))
    option = 'parser.add_argument("--opt")'
    asked = replace(asked, install=lambda version: codegen_toolchain(tmp_path / "t", version, by_new, option))
    assert compare_releases(asked) == code
    report = (asked.folder / REPORT).read_text()
    assert "## One price for both" in report
    assert words in report
    verdict = (asked.folder / VERDICT).read_text()
    assert ("predicted_cycles_at_one_price" in verdict) == ("the code" in words)


def test_boards_in_turns(tmp_path):
    """Several launches a side, one after the other in turns; more of them later go on from those there are."""
    times = [{"decode_ms_at_0": 5.0 + i / 100, "device_memory_bytes": 1e8} for i in range(4)]
    sides = {}
    for first, version in ((0, OLD), (1, NEW)):
        toolchain = {"version": version, "commit": version, "wheel_sha256": version, "identity": version}
        sides[version] = launches(times, first=first, toolchain=toolchain)
    suites = Suites(tmp_path, sides[OLD], sides[NEW])
    assert compare_releases(plan(tmp_path, suites, device="0", launches=3)) == 3  # too few to tell anything
    assert [side for side, _ in suites.launched] == ["old", "new"] * 3
    report = (tmp_path / "r" / REPORT).read_text()
    assert "Measured on the board" in report
    assert "| 5.01, the same |" in report  # the median of three
    assert "One side was measured before the other" not in report
    compare_releases(plan(tmp_path, suites, device="0", launches=4))
    assert [side for side, _ in suites.launched] == ["old", "new"] * 4


@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 5))
def test_turns(old, new, count):
    """Each side comes to its number, and neither is more than one launch ahead but for what was there."""
    done = {"old": old, "new": new}
    counts = dict(done)
    for side, number in turns(dict(done), count):
        counts[side] += 1
        assert counts[side] == number
        assert counts[side] - min(counts.values()) <= max(1, abs(old - new))
    assert counts == {side: max(made, count) for side, made in done.items()}


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (a_side(NEW, a_record(), complete := a_record(PREFILL, outcome=Outcome.INFRA)), Kind.INFRA),
        (replace(a_side(NEW), complete=False), Kind.INFRA),
        (replace(a_side(NEW), mangle=lambda text: b"x" + text), Kind.INFRA),
        (replace(a_side(NEW), end={"exit_status": 3}), Kind.INFRA),
        (4, Kind.NOT_COMPARABLE),
        (5, Kind.NOT_COMPARABLE),
        (3, Kind.INFRA),
    ],
    ids=["infra", "interrupted", "unreadable", "internal error", "usage", "no tests", "broke"],
)
def test_a_launch_without_an_answer(tmp_path, bad, kind):
    """It is said why, what there is of it is set aside, and the same command goes on with that side alone."""
    suites = Suites(tmp_path, [a_side(OLD)], [bad, a_side(NEW)])
    asked = plan(tmp_path, suites)
    with pytest.raises(LaunchError) as said:
        compare_releases(asked)
    assert said.value.kind is kind
    assert not (asked.folder / REPORT).exists()
    assert compare_releases(asked) == 0
    assert [side for side, _ in suites.launched] == ["old", "new", "new"]
    assert len(list((asked.folder / ASIDE).glob("new/*"))) == (not isinstance(bad, int))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_every_way_out(tmp_path, number):
    """However it is stopped, nothing runs on, and the same command finishes without the side that was complete."""
    for name, made in (("old", a_side(OLD)), ("new", a_side(NEW)), ("half", replace(a_side(NEW), complete=False))):
        made.write(tmp_path / "made" / name)
    folder = tmp_path / "r"
    start = [sys.executable, "-c", STARTING, str(tmp_path), str(folder), str(tmp_path / "made")]
    begun = subprocess.Popen(start, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists():
            assert time.monotonic() < deadline, "waited for a minute"
            assert begun.poll() is None, begun.stderr.read()
            time.sleep(0.05)
        os.kill(begun.pid, number)
        said = begun.communicate(timeout=60)[1].decode()
    finally:
        begun.kill()
        begun.communicate()
    if number != signal.SIGKILL:
        assert begun.returncode == 4, said
        assert f"the same command goes on in {folder}" in said
    (first,) = answers(folder / "old")
    written = (first / "records.jsonl").stat().st_mtime_ns
    (tmp_path / "free").touch()
    done = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (first / "records.jsonl").stat().st_mtime_ns == written
    assert [path.name for path in (folder / ASIDE / "new").iterdir()] == ["half"]
    assert (folder / REPORT).exists()


def test_another_question(tmp_path, monkeypatch, capsys):
    """A folder is good for one question; it says what differs, and keeps what it has."""
    asked = plan(tmp_path, Suites(tmp_path, [a_side(OLD)], [a_side(NEW)]))
    assert compare_releases(asked) == 0
    monkeypatch.setattr(command, "install_and_say", asked.install)
    arguments = [NEW, "--against", OLD, "--out", asked.folder]
    assert release_command(monkeypatch, *arguments, "--grid", "default") == 3
    assert "asked something else: grid 'smoke', not 'default'" in capsys.readouterr().err
    assert release_command(monkeypatch, *arguments, "--grid", "smoke") == 0
    (asked.folder / "question.json").write_text("{")
    assert release_command(monkeypatch, *arguments, "--grid", "smoke") == 3


def test_a_folder_of_something_else(tmp_path, monkeypatch, capsys):
    """Nothing is put among other people's files, hidden ones neither."""
    (tmp_path / "mine").write_text("mine")
    assert release_command(monkeypatch, NEW, "--against", OLD, "--out", tmp_path) == 3
    assert "should be empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_one_at_a_time(tmp_path, monkeypatch, capsys):
    """A second command in the folder says so and ends with 4."""
    (tmp_path / "r").mkdir()
    with filelock.FileLock(tmp_path / "r" / ".asked.lock"):
        assert release_command(monkeypatch, NEW, "--against", OLD, "--out", tmp_path / "r") == 4
    assert "another command works there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [NEW],
        ["--against", OLD],
        [NEW, "--against", OLD, "--launches", "0"],
        [NEW, "--against", OLD, "--grid", "nowhere"],
        [NEW, "--against", OLD, "--", "--toolchain", "3.0"],
        [NEW, "--against", OLD, "--", "--device=0"],
        [NEW, "--against", OLD, "--rules", "nowhere.toml"],
    ],
)
def test_usage_is_no_stale_expectation(arguments, tmp_path, monkeypatch):
    """A mistake in usage ends with 3, before anything is installed or written."""
    monkeypatch.chdir(tmp_path)
    assert release_command(monkeypatch, *arguments) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_release_that_there_is_not(tmp_path, monkeypatch, capsys):
    """What cannot be installed ends with 4 and the installer's words."""
    monkeypatch.setenv("RWKV_TPU_CACHE", str(tmp_path / "cache"))
    assert release_command(monkeypatch, NEW, "--against", "so-old", "--out", tmp_path / "r", "--grid", "smoke") == 4
    assert json.loads((tmp_path / "r" / "question.json").read_text())["old"] == "so-old"
    assert "no version of tpu_mlir" in capsys.readouterr().err


def test_a_fault_of_the_harness_is_no_regression(tmp_path, monkeypatch, capsys):
    """What nothing here foresees ends with 4 and its traceback: Python's own exit status, 1, would say regression."""

    def broken(_):
        raise AssertionError("it cannot be")

    monkeypatch.setattr(command, "compare_releases", broken)
    assert release_command(monkeypatch, NEW, "--against", OLD, "--out", tmp_path) == 4
    told = capsys.readouterr().err
    assert "in broken" in told
    assert "error: AssertionError: it cannot be\nNo verdict: the harness itself broke" in told
