"""Since which release a case is wrong: the search, one trial, and the command."""

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile import releases as listing
from compile.releases import OrderError, ReleasesError, between, published
from compile.toolchain import ToolchainError
from harness.bisection import Answer, EndError, bisect
from harness.cases import load_grid, parse_case
from harness.cli import main
from harness.commands import bisect as command
from harness.trial import judge, write_grid
from reports.schema import Outcome
from tests.gate_runs import DECODE, MadeRun, a_record, failed

COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
ROW = ["1.24", "1.25", "1.26", "1.27", "1.28.1"]


@st.composite
def rows(draw):
    """A row, the place of its first bad one, and the places that cannot be told; the ends can."""
    count = draw(st.integers(2, 60))
    return count, draw(st.integers(1, count - 1)), draw(st.sets(st.integers(1, count - 1))) - {count - 1}


@given(rows())
def test_any_row(row):
    """The nearest that can be told on either side of the turn are found, and no one is asked twice."""
    count, turn, untold = row
    asked = []

    def ask(name):
        asked.append(name)
        if int(name) in untold:
            return Answer.SKIP
        return Answer.GOOD if int(name) < turn else Answer.BAD

    found = bisect([str(place) for place in range(count)], ask)
    last_good = max(place for place in range(turn) if place not in untold)
    first_bad = min(place for place in range(turn, count) if place not in untold)
    assert (found.last_good, found.first_bad) == (str(last_good), str(first_bad))
    assert found.doubtful == tuple(str(place) for place in range(last_good + 1, first_bad))
    assert len(set(asked)) == len(asked)
    if not untold:
        assert len(asked) <= 2 + math.ceil(math.log2(count - 1))


@pytest.mark.parametrize("answer", list(Answer))
def test_ends(answer):
    """Nothing is searched where the first is not good or the last not bad."""
    with pytest.raises(EndError) as first:
        bisect(ROW, lambda name: answer if name != ROW[0] else Answer.BAD)
    assert (first.value.name, first.value.wanted) == (ROW[0], Answer.GOOD)
    if answer is not Answer.BAD:
        with pytest.raises(EndError) as last:
            bisect(ROW, lambda name: answer if name != ROW[0] else Answer.GOOD)
        assert (last.value.name, last.value.found) == (ROW[-1], answer)


def test_between():
    """Only what lies between, each once, by number and not by letter; the ends come from the caller."""
    assert between("1.8.1", "1.11", ["1.9", "1.10", "1.8", "1.9", "1.12", "1.8.1"]) == ("1.8.1", "1.9", "1.10", "1.11")
    for old, new in (("1.2", "1.2"), ("1.3", "1.2"), ("x", "1.2"), ("1.27", "1.27.0")):
        with pytest.raises(OrderError):
            between(old, new, [])


@pytest.mark.parametrize(
    ("status", "said", "want"),
    [
        (
            0,
            "tpu_mlir (1.30.2)\nAvailable versions: 1.30.2, 1.28.1, 1.9\n",
            ("1.9", "1.28.1", "1.30.2"),
        ),
        (1, "ERROR: No matching distribution", None),
        (0, "another form", None),
    ],
)
def test_what_pip_lists(monkeypatch, status, said, want):
    """The oldest first; where pip fails, its words and the way around it."""
    monkeypatch.setattr(listing.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], status, said, ""))
    if want is not None:
        assert published() == want
        return
    with pytest.raises(ReleasesError, match="--releases") as error:
        published()
    assert said in str(error.value)


@pytest.mark.parametrize(
    "case", ["decode-F16-chunk", "prefill_16-W4F16-loop", "prefill_all_32-F16-chunk+opt1+same_addr"]
)
def test_the_grid_of_a_case(tmp_path, case):
    """The file is a grid, and has the case."""
    grid = load_grid(str(write_grid(tmp_path, parse_case(case))))
    assert parse_case(case) in grid.cases


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        (a_record(), Answer.GOOD),
        (failed(), Answer.BAD),
        (a_record(outcome=Outcome.EXPECTED_FAILURE), Answer.BAD),
        (a_record(outcome=Outcome.SKIPPED), Answer.SKIP),
    ],
)
def test_a_verdict(record, answer):
    """A release is bad where a check failed, expected or not; where none was made nothing can be told."""
    assert judge("1.0", MadeRun((record,)).file()).answer is answer


class Releases:
    """In place of installer and suites: releases from *first_bad* on fail, some cannot be installed or have no verdict.

    Attributes:
        tried: releases whose suites ran.
    """

    def __init__(self, folder, first_bad, absent=(), sick=()):
        self.folder = folder
        self.first_bad = first_bad
        self.absent = absent
        self.sick = sick
        self.tried = []
        self.arguments = []

    def install(self, version):
        """Install nothing."""
        if version in self.absent:
            raise ToolchainError(f"tpu_mlir {version} cannot be installed: no such thing\nmore")

    def suites(self, runs, arguments):
        """Return a command that writes a run."""
        version = arguments[arguments.index("--toolchain") + 1]
        self.tried.append(version)
        self.arguments = arguments
        record = failed() if ROW.index(version) >= ROW.index(self.first_bad) else a_record()
        record = a_record(outcome=Outcome.INFRA, message="the board is sick") if version in self.sick else record
        source = self.folder / f"made-{version}-{len(self.tried)}"
        MadeRun((record,), {"id": version}).write(source)
        return [sys.executable, "-c", COPY, str(source), str(runs / f"{version}-{len(self.tried)}")]


def bisect_command(monkeypatch, releases, folder, *arguments, row=ROW):
    """Run ``rwkv-tpu bisect`` on made-up releases; return the exit code."""
    monkeypatch.setattr(command, "install_and_say", releases.install)
    monkeypatch.setattr(command, "suites_command", releases.suites)
    monkeypatch.setattr(command, "published", lambda: row)
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "bisect", "--out", str(folder), *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code or 0


def test_the_first_bad_release(tmp_path, monkeypatch, capsys):
    """Found with few trials, named with the commands to see it; once more tries nothing."""
    releases = Releases(tmp_path, "1.26")
    arguments = [DECODE, "1.24", "1.28.1", "--", "--libsophon", "there"]
    assert bisect_command(monkeypatch, releases, tmp_path / "b", *arguments) == 0
    said = capsys.readouterr().out
    assert "first bad  1.26  parity/from_zero_state failed at numerics: NaN or Inf among the logits" in said
    assert "last good  1.25" in said
    assert "--libsophon there --toolchain 1.26" in said
    assert f"'(test_parity or test_state) and [{DECODE}]'" in said
    assert releases.tried == ["1.24", "1.28.1", "1.26", "1.25"]
    assert bisect_command(monkeypatch, releases, tmp_path / "b", *arguments) == 0
    assert len(releases.tried) == 4
    assert bisect_command(monkeypatch, releases, tmp_path / "b", DECODE, "1.24", "1.28.1", "-k", "parity") == 3


def test_skipped_releases(tmp_path, monkeypatch, capsys):
    """What cannot be installed or has no verdict is passed over and named, with what that leaves open."""
    releases = Releases(tmp_path, "1.26", absent=["1.26"], sick=["1.25"])
    assert bisect_command(monkeypatch, releases, tmp_path / "b", DECODE, "1.24", "1.28.1") == 1
    said = capsys.readouterr().out
    assert "first bad  1.27" in said
    assert "last good  1.24" in said
    assert "skipped    1.25  no answer from 1.25: decode-F16-chunk parity from_zero_state: the board is sick" in said
    assert "skipped    1.26  tpu_mlir 1.26 cannot be installed: no such thing\n" in said
    assert "The first bad one is 1.25 or 1.26 or 1.27." in said


@pytest.mark.parametrize(
    ("first_bad", "absent", "ends", "code"),
    [("1.24", (), ("1.24", "1.26"), 3), ("1.28.1", (), ("1.24", "1.26"), 3), ("1.26", ("1.24",), ("1.24", "1.26"), 4)],
    ids=["old is bad", "new is good", "old cannot be tried"],
)
def test_nothing_to_find(tmp_path, monkeypatch, capsys, first_bad, absent, ends, code):
    """No search without a good and a bad end."""
    releases = Releases(tmp_path, first_bad, absent)
    assert bisect_command(monkeypatch, releases, tmp_path / "b", DECODE, *ends) == code
    assert "nothing found: " in capsys.readouterr().out


def test_releases_of_ones_own(tmp_path, monkeypatch):
    """Without a registry: only those that are named, and the ends."""
    releases = Releases(tmp_path, "1.28.1")
    arguments = [DECODE, "1.24", "1.28.1", "--releases", "1.27, 1.25"]
    assert bisect_command(monkeypatch, releases, tmp_path / "b", *arguments, row=None) == 0
    assert sorted(releases.tried) == ["1.24", "1.25", "1.27", "1.28.1"]


@pytest.mark.parametrize(
    "arguments",
    [["no-case", "1.24", "1.26"], [DECODE, "1.24"], [DECODE, "1.24", "1.26", "--", "-k", "state"]],
)
def test_usage(tmp_path, monkeypatch, arguments):
    """A mistake in usage ends with 3, and nothing is tried."""
    assert bisect_command(monkeypatch, Releases(tmp_path, "1.26"), tmp_path / "b", *arguments) == 3
    assert not (tmp_path / "b").exists()


def test_releases_in_the_wrong_order(tmp_path, monkeypatch, capsys):
    """The older one comes first."""
    assert bisect_command(monkeypatch, Releases(tmp_path, "1.26"), tmp_path / "b", DECODE, "1.26", "1.24") == 3
    assert "name the older one first" in capsys.readouterr().err
