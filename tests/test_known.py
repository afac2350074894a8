"""Expected failures: the list, what it makes of records, what a run says of it, and how it is brought up to date."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.toolchain import RECEIPT, Toolchain
from harness.cli import main
from harness.gate.compare import gate
from harness.gate.finding import Key
from harness.gate.rules import load_rules
from harness.known import KNOWN, Entry, Known, KnownError, load_known, parse_known
from harness.known_update import Why, updated, written
from reports.lenient import LoadedRun
from reports.schema import End, Outcome, RunFile, Stage, read
from reports.verdict import State, verdict_of_run
from tests.a_receipt import a_receipt
from tests.example_port import T, write_onnx
from tests.gate_runs import DECODE, PREFILL, MadeRun, a_record, a_run, failed, in_memory

ROOT = Path(__file__).parent.parent
DAY = date(2026, 1, 31)
WHY = Why(reason="to be explained", link="", since=DAY, look_again=date(2026, 3, 1))
ENTRY = """\
[[known]]
cases = "decode-*"
stage = "numerics"
reason = "the state is lost"
link = "https://example.org/1"
since = 2026-01-31
look_again = 2026-03-01
"""


def known(text=ENTRY, checkpoint="tiny", target="cmodel"):
    """What a run expects by a list."""
    entries = parse_known(text.encode(), Path("known.toml"))
    return Known(path=Path("known.toml"), entries=tuple(one for one in entries if one.concerns(checkpoint, target)))


def judged(record, text=ENTRY):
    """A record, held against a list."""
    return known(text).judged(record)


# ---- the list


def test_the_example_that_ships():
    """Every field of an entry is read."""
    (entry,) = parse_known((KNOWN / "example.toml").read_bytes(), KNOWN)
    assert entry.patterns == {
        "cases": "prefill_*-W4F16-chunk",
        "suite": "parity",
        "check": "from_random_state",
        "checkpoint": "tiny",
        "target": "cmodel",
    }
    assert (entry.stage, entry.since) == (Stage.NUMERICS, DAY)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[[known]]", "[[known]", "at line 8, column 8"),
        ("stage = ", "stages = ", "known.toml:10: Object contains unknown field `stages`"),
        ('stage = "numerics"', "", "known.toml:8: Object missing required field `stage`"),
        ('"numerics"', '"never"', "known.toml:10: Invalid enum value 'never'"),
        ('"decode-*"', "3", "known.toml:9: Expected `str`, got `int`"),
        (
            "= 2026-01-31",
            '= "2026-01-31"',
            "known.toml:13: Expected `date`, got `str` - at `$.known[1].since`; a date has",
        ),
        ("2026-03-01", "2026-01-31", "known.toml:8: look_again is 2026-01-31, but should be later than since"),
        ('"the state is lost"', '" "', "known.toml:8: reason is empty"),
        ("decode-", "prefill_16-", "known.toml:8: an entry before this one has the same patterns"),
        ("\n", "\n\xff", "docs/known.md"),
    ],
)
def test_a_list_that_makes_no_sense(old, new, says):
    """Each mistake of the second entry is named with the file and its line."""
    text = ENTRY.replace("decode-", "prefill_16-") + ENTRY.replace(old, new)
    with pytest.raises(KnownError) as error:
        parse_known(text.encode("latin-1"), Path("known.toml"))
    assert says in str(error.value)
    assert "known.toml" in str(error.value)


def test_which_list_is_read(tmp_path):
    """The release's own, another one, or none; a file that is not there is refused, a release without a list is not."""
    about = {"checkpoint": "tiny", "target": "cmodel"}
    assert load_known(None, version="no-release", **about) == Known()
    assert load_known("none", version="example", **about) == Known()
    assert load_known(None, version="example", **about).path == KNOWN / "example.toml"
    assert load_known(None, version="example", checkpoint="mine", target="cmodel").entries == ()
    assert load_known(None, version="example", checkpoint="tiny", target="0").entries == ()
    with pytest.raises(KnownError, match=r"mine\.toml: cannot be read: No such file"):
        load_known(str(tmp_path / "mine.toml"), version="example", **about)


# ---- what it makes of a record


def test_a_check_that_fails_as_expected():
    """It is an expected failure, says why, and keeps its stage and message."""
    record = judged(failed())
    assert (record.outcome, record.stage) == (Outcome.EXPECTED_FAILURE, Stage.NUMERICS)
    assert record.message == failed().message
    assert msgspec.structs.asdict(record.expected) == {
        "reason": "the state is lost",
        "link": "https://example.org/1",
        "since": "2026-01-31",
        "look_again": "2026-03-01",
    }


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (failed(stage=Stage.LOAD), "failed at load, but is expected to fail at numerics: the state is lost"),
        (failed(stage=None), "failed before any stage, but"),
        (failed(check="from_zero_state (setup)"), "failed in its setup, but"),
        (failed(check="from_zero_state (teardown)"), "failed in its teardown, but"),
        (a_record(), "passes, but is expected to fail at numerics: the state is lost"),
    ],
)
def test_anything_else_than_expected(record, says):
    """A failure elsewhere stays one, a pass stays one; both say what was expected, before their own message."""
    found = judged(record)
    assert found.outcome is record.outcome
    assert found.message.startswith(says)
    assert found.message.endswith(record.message)
    assert found.expected is not None


@pytest.mark.parametrize(
    "record",
    [
        failed(PREFILL),
        a_record(PREFILL),
        a_record(outcome=Outcome.SKIPPED),
        a_record(outcome=Outcome.INFRA, stage=Stage.NUMERICS),
    ],
)
def test_what_no_expectation_touches(record):
    """Other cases, and what gave no verdict."""
    assert judged(record) == record


def test_the_first_entry_decides():
    """A later one that is left nothing matches nothing."""
    text = ENTRY + ENTRY.replace("decode-*", "decode-F16-chunk").replace("numerics", "load")
    assert judged(failed(), text).outcome is Outcome.EXPECTED_FAILURE
    assert judged(failed(stage=Stage.LOAD), text).outcome is Outcome.FAILED
    (unmatched,) = known(text).unmatched([Key(DECODE, "parity", "from_zero_state")])
    assert unmatched.title == "cases = 'decode-F16-chunk'"


def test_the_day_to_look_again():
    """From that day on an entry is due."""
    assert known().due(date(2026, 2, 28)) == ()
    assert known().due(date(2026, 3, 1)) == known().entries


# ---- bringing it up to date


def run_of(*records, unmatched=(), **run):
    """A run that came to its end."""
    end = End(finished="now", records=len(records), outcomes={}, exit_status=1, unmatched=unmatched)
    return RunFile(run=a_run(**run), records=records, end=end)


def update(text, *records, **changes):
    """The new list, and what was said."""
    return updated(text, Path("known.toml"), run_of(*records, **changes), WHY)


def test_a_check_without_an_entry_gets_one():
    """It names case, check, checkpoint and target; the next run then fails as expected."""
    result = update("# Mine.\n", failed(), a_record(PREFILL))
    (entry,) = result.entries
    assert entry.patterns == {
        "cases": DECODE,
        "suite": "parity",
        "check": "from_zero_state",
        "checkpoint": "tiny",
        "target": "cmodel",
    }
    assert (entry.reason, entry.since) == ("to be explained", DAY)
    assert result.text.startswith("# Mine.\n\n[[known]]\n")
    assert judged(failed(), result.text).outcome is Outcome.EXPECTED_FAILURE
    assert judged(a_record(PREFILL), result.text).expected is None


def test_a_case_that_does_not_compile_gets_one_entry():
    """For all of its checks, on any target; one that fails later gets an entry for each check."""
    both = [failed(check=check, stage=Stage.CODEGEN) for check in ("from_zero_state", "from_random_state")]
    (entry,) = update("", *both).entries
    assert (entry.cases, entry.suite, entry.check, entry.target) == (DECODE, "*", "*", "*")
    assert len(update("", *(msgspec.structs.replace(one, stage=Stage.LOAD) for one in both)).entries) == 2
    assert len(update("", *both, a_record(check="else")).entries) == 2


def test_an_entry_whose_checks_pass_goes():
    """With the comment above it; all else stays to the letter."""
    other = ENTRY.replace("decode-*", PREFILL)
    rest = f"# Mine.\n\n{other}\n# --- decode\n\n"
    result = update(f"{rest}# Lost.\n{ENTRY}", a_record(), failed(PREFILL))
    assert result.text == rest
    assert result.notes == ("removed: cases = 'decode-*': passes",)


def test_an_entry_whose_checks_fail_elsewhere_is_changed():
    """The stage alone, where it stands."""
    text = ENTRY.replace('stage = "numerics"', "stage =  'numerics'  # why?")
    result = update(text, failed(stage=Stage.RUN))
    assert result.text == text.replace("'numerics'", '"run"')
    assert "fails at run, not at numerics" in result.notes[0]


def test_an_entry_of_which_some_pass_is_narrowed():
    """To those that fail; reason, link and dates stay."""
    records = failed(check="a"), failed(check="b", stage=Stage.RUN), a_record(check="c")
    result = update(f"# Mine.\n\n# Lost.\n{ENTRY}", *records)
    assert [(one.check, one.stage) for one in result.entries] == [("a", Stage.NUMERICS), ("b", Stage.RUN)]
    assert {(one.reason, one.link, one.since) for one in result.entries} == {
        ("the state is lost", "https://example.org/1", DAY)
    }
    assert result.text.startswith("# Mine.\n\n# Lost.\n[[known]]\n")


def test_what_a_run_says_nothing_of_stays():
    """Other checkpoints, cases that are not there, and checks without a verdict, of which a word is said."""
    elsewhere = ENTRY.replace("stage", 'checkpoint = "big"\nstage', 1)
    assert update(elsewhere, a_record()).text == elsewhere
    assert update(ENTRY, a_record(PREFILL)).text == ENTRY
    sick = a_record(outcome=Outcome.INFRA, message="the board is sick")
    result = update(ENTRY, sick, a_record(check="other"))
    assert result.text == ENTRY
    assert "no verdict, the device or the host was sick (INFRA)" in result.notes[0]
    assert update(ENTRY, a_record(outcome=Outcome.SKIPPED)).text == ENTRY
    for odd in failed(check="from_zero_state (setup)"), failed(stage=None):
        assert update("", odd).entries == ()
        assert "which is never expected" in update("", odd).notes[0]


def test_an_entry_that_matches_nothing_goes():
    """Where the run said so."""
    assert update(ENTRY, a_record(PREFILL), unmatched=("cases = 'decode-*'",)).entries == ()


def test_a_list_that_cannot_be_changed():
    """Written in another way that TOML has: refused in words, and not spoilt."""
    inline = ENTRY.replace("[[known]]\n", "").strip().replace("\n", ", ")
    with pytest.raises(KnownError, match="write each under one"):
        update(f"known = [{{{inline}}}]", a_record())


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
CASES = ["decode-F16-chunk", "prefill_16-F16-chunk", "prefill_16-W4F16-chunk", ""]
ENTRIES = st.builds(
    Entry,
    cases=st.sampled_from([*CASES, "*", "prefill_*", "*-F16-*"]),
    suite=st.sampled_from(["*", "parity", "state", "p*"]),
    check=st.sampled_from(["*", "a", "[ab]"]),
    checkpoint=st.sampled_from(["*", "tiny", "other"]),
    stage=st.sampled_from(Stage),
    reason=TEXTS.filter(lambda text: text.strip()),
    link=TEXTS,
    since=st.dates(max_value=date(2026, 1, 1)),
    look_again=st.dates(min_value=date(2026, 1, 2)),
)
LISTS = st.lists(ENTRIES, max_size=4, unique_by=lambda entry: str(entry.patterns))
CHECKS = [Key(case, suite, check) for case in CASES for suite in ("parity", "state") for check in "ab"]
RUNS = st.dictionaries(st.sampled_from(CHECKS), st.none() | st.sampled_from(Stage))


def records_of(found):
    """Records of checks that failed at a stage, or passed."""
    outcomes = {True: Outcome.PASSED, False: Outcome.FAILED}
    return [
        a_record(key.case, key.check, suite=key.suite, outcome=outcomes[stage is None], stage=stage)
        for key, stage in found.items()
    ]


def list_of(entries):
    """A list as an update writes it."""
    return "\n".join(map(written, entries))


@given(LISTS)
def test_what_is_written_is_read(entries):
    """Every text comes back as it was, and a run without checks changes nothing."""
    text = list_of(entries)
    assert parse_known(text.encode(), Path("k")) == tuple(entries)
    assert update(text).text == text


@given(LISTS, RUNS)
def test_after_an_update_the_run_is_as_expected(entries, found):
    """Held against the new list, each check passes or fails as expected; and a second update changes nothing."""
    records = records_of(found)
    text = update(list_of(entries), *records).text
    for record in records:
        became = known(text).judged(record)
        assert (became.outcome is Outcome.EXPECTED_FAILURE) == (record.outcome is Outcome.FAILED)
        assert (became.expected is None) == (record.outcome is Outcome.PASSED)
    again = update(text, *records)
    assert again.text == text
    assert not again.notes


# ---- the gate


def gated(base, new, **about_new):
    """What the gate finds between two runs of one record each, as outcomes of the check; and its exit code."""
    sides = [in_memory(Path(name), [made]) for name, made in (("base", base), ("new", replace(new, **about_new)))]
    report = gate(*sides, load_rules())
    return report.exit_code, [finding.note for finding in report.findings if finding.metric == "outcome"]


EXPECTED_FAILURE = judged(failed())
OTHER_LIST = {"data": {"known": "another"}}


@pytest.mark.parametrize("base", [a_record(), failed(), EXPECTED_FAILURE, judged(a_record())])
def test_the_gate_sees_an_expected_failure_that_passes(base):
    """By NEW's record alone, whatever the baseline says; told once."""
    code, notes = gated(MadeRun((base,)), MadeRun((judged(a_record()),)))
    assert code == 2
    assert notes == ["it passes: rwkv-tpu known update takes it off the list of expected failures"]


def test_the_gate_sees_one_launch_of_several():
    """Where a check fails as expected in one launch and passes in another."""
    runs = [MadeRun((record,), {"id": f"r{n}"}) for n, record in enumerate((EXPECTED_FAILURE, judged(a_record())))]
    expected = [MadeRun((EXPECTED_FAILURE,), {"id": run.run["id"]}) for run in runs]
    report = gate(in_memory(Path("base"), expected), in_memory(Path("new"), runs), load_rules())
    assert report.exit_code == 2


def test_the_gate_sees_what_matches_nothing():
    """Of NEW, each entry once; the baseline's are its own affair."""
    stale = {"end": {"unmatched": ("cases = 'gone'",), "exit_status": 1}}
    code, notes = gated(MadeRun((a_record(),)), MadeRun((a_record(),)), **stale)
    assert (code, len(notes)) == (2, 1)
    assert "cases = 'gone': it matches nothing any more" in notes[0]
    assert gated(MadeRun((a_record(),), **stale), MadeRun((a_record(),)))[0] == 0


def test_the_gate_sees_a_failure_elsewhere():
    """A check that fails otherwise than expected is a regression, also where the lists differ."""
    other = MadeRun((judged(failed(stage=Stage.LOAD)),), OTHER_LIST)
    code, (note,) = gated(MadeRun((EXPECTED_FAILURE,)), other)
    assert (code, note[:32]) == (1, "it fails otherwise than expected")


@pytest.mark.parametrize(
    ("base", "new", "code"),
    [
        (a_record(), a_record(), 0),
        (EXPECTED_FAILURE, EXPECTED_FAILURE, 0),
        (EXPECTED_FAILURE, a_record(), 0),  # the new list rightly has it no more
        (EXPECTED_FAILURE, failed(), 3),  # fails as before, and nobody expects it
        (EXPECTED_FAILURE, failed(stage=Stage.LOAD), 1),
        (a_record(), EXPECTED_FAILURE, 1),  # no list hides a regression
    ],
)
def test_lists_may_differ(base, new, code):
    """Each release has its own: a difference is shown, and does not keep two runs from being compared."""
    assert gated(MadeRun((base,)), MadeRun((new,), OTHER_LIST))[0] == code


@pytest.mark.parametrize(
    ("records", "end", "headline"),
    [
        ((EXPECTED_FAILURE,), {}, "All 1 checks passed, were skipped or failed as expected"),
        ((judged(a_record()),), {}, "1 stale expectation in 1 checks"),
        ((a_record(),), {"unmatched": ("a", "b")}, "2 stale expectations in 1 checks"),
        ((failed(PREFILL), judged(a_record())), {}, "1 of 2 checks failed, 1 stale expectation"),
    ],
)
def test_what_a_report_says_first(records, end, headline):
    """A stale expectation is nothing good."""
    verdict = verdict_of_run(LoadedRun(path=Path("r"), file=MadeRun(records, end=end).file()))
    assert verdict.headline == headline
    assert verdict.state is (State.GOOD if "All" in headline else State.BAD)


# ---- the command


def command(monkeypatch, *args):
    """The exit status of ``rwkv-tpu known``."""
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "known", *map(str, args)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


def test_update_writes_and_shows(tmp_path, monkeypatch, capsys):
    """The file is made, what changed is printed, and a second update has nothing to change."""
    MadeRun((failed(),)).write(tmp_path / "run")
    mine = tmp_path / "mine.toml"
    asked = "update", tmp_path / "run", "--file", mine
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    assert command(monkeypatch, *asked, "--reason", "lost", "--link", "L", "--look-again", tomorrow) == 0
    said = capsys.readouterr().out
    assert "added: cases = 'decode-F16-chunk', suite = 'parity', check = 'from_zero_state'" in said
    assert '\n+reason = "lost"\n' in said
    (entry,) = parse_known(mine.read_bytes(), mine)
    assert (entry.reason, entry.link, entry.look_again) == ("lost", "L", tomorrow)
    assert command(monkeypatch, *asked) == 0
    assert "nothing to change" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "run"]
    assert command(monkeypatch, "list", "--file", mine) == 0
    assert "0 d" in capsys.readouterr().out


def test_what_an_update_refuses(tmp_path, monkeypatch, capsys):
    """Interrupted runs, what is no run, a day that is past, and cases of other grids in a list that ships."""
    MadeRun((failed(),), complete=False).write(tmp_path / "cut")
    MadeRun((failed("decode-F16-mine"),), {"toolchain": {"version": "no-release"}}).write(tmp_path / "own")
    assert command(monkeypatch, "update", tmp_path / "cut") == 1
    assert "was interrupted" in capsys.readouterr().err
    assert command(monkeypatch, "update", tmp_path / "nowhere") == 1
    assert "should be a run's folder" in capsys.readouterr().err
    assert command(monkeypatch, "update", tmp_path / "own") == 1
    assert "case decode-F16-mine is in no grid that ships" in capsys.readouterr().err
    assert not (KNOWN / "no-release.toml").exists()
    assert command(monkeypatch, "update", tmp_path / "own", "--look-again", "2020-01-01") == 2
    assert command(monkeypatch, "list", "--toolchain", "no-release") == 0
    assert "no failures are expected" in capsys.readouterr().out


# ---- a run


@pytest.fixture
def broken_compiler(tmp_path, monkeypatch):
    """A toolchain whose first tool fails at once."""
    cache = tmp_path / "cache"
    found = Toolchain(cache / "toolchains" / "1.30.2-0", a_receipt())
    tools = found.package / "python" / "tools"
    tools.mkdir(parents=True)
    found.python.parent.mkdir()
    found.python.symlink_to(sys.executable)
    (tools / "model_transform.py").write_text("raise SystemExit('no such operator')")
    (found.root / RECEIPT).write_bytes(msgspec.json.encode(found.receipt))
    monkeypatch.setenv("RWKV_TPU_CACHE", str(cache))


def entry(cases, stage, **more):
    """An entry of a list, to look at again tomorrow."""
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    texts = {"cases": cases, "stage": stage, "reason": "made up", **more}
    lines = [f'{name} = "{value}"' for name, value in texts.items() if name != "look_again"]
    dates = f"since = 2020-01-01\nlook_again = {more.get('look_again', tomorrow)}\n"
    return "\n".join(["[[known]]", *lines, dates])


def run_suites(tmp_path, text, *arguments):
    """``pytest suites/`` with a list, in a process of its own: its end, its records, and its folder."""
    (tmp_path / "known.toml").write_text(text)
    command = [sys.executable, "-m", "pytest", str(ROOT / "suites"), "--rootdir", str(ROOT), "-c"]
    command += [str(ROOT / "pyproject.toml"), "--known", "known.toml", "--grid", "smoke", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    (folder,) = (tmp_path / "runs").iterdir()
    return done, read(folder / "records.jsonl"), folder


def words(done):
    """What was printed, with line breaks and colours left out."""
    return " ".join(done.stdout.split())


@pytest.mark.usefixtures("broken_compiler")
def test_a_run_that_fails_as_expected(tmp_path):
    """It passes; an entry for another grid that ships is no fault; one that is due is a word."""
    text = entry("decode-*", "transform", look_again="2020-02-01") + entry("prefill_96-*", "numerics")
    done, run, _ = run_suites(tmp_path, text, "-k", "decode and parity")
    assert done.returncode == 0, done.stdout[-8000:]
    assert "4 xfailed" in done.stdout
    assert {record.outcome for record in run.records} == {Outcome.EXPECTED_FAILURE}
    assert {record.expected.reason for record in run.records} == {"made up"}
    assert (run.end.exit_status, run.end.unmatched) == (0, ())
    assert len(run.run.data["known"]) == 64
    assert "look again, due since 2020-02-01: cases = 'decode-*': made up" in words(done)
    assert "stale" not in done.stdout


@pytest.mark.usefixtures("broken_compiler")
def test_a_run_of_somebody_elses_port(tmp_path, monkeypatch, capsys):
    """Its ids are expected to fail by a list of its own, which an update writes; none that ships takes them."""
    files = write_onnx(tmp_path)
    port = "--onnx", ",".join(map(str, files)), "--io", "onnx.toml", "-k", "parity and random or ops"
    ids = [f"{graph}-F16-bm1684x_port" for graph in ("decode", f"prefill_{T}")]
    done, run, folder = run_suites(tmp_path, entry("decode-F16-bm1684x_port", "transform"), *port)
    assert done.returncode == 1, done.stdout[-8000:]
    assert {one.case: one.outcome for one in run.records} == {
        "": Outcome.SKIPPED,
        ids[0]: Outcome.EXPECTED_FAILURE,
        ids[1]: Outcome.FAILED,
    }
    assert {one.message for one in run.records if one.suite == "ops"} == {
        "Skipped: the suite ops is of our own graphs' operations: it says nothing of somebody else's port"
    }
    assert run.run.grid["name"] == "bm1684x_port"
    assert len(run.run.port["files_sha256"]) == 2 * 64 + 2

    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "update", folder, "--file", KNOWN / "no-release.toml") == 1
    assert f"case {ids[0]} is in no grid that ships" in capsys.readouterr().err
    assert not (KNOWN / "no-release.toml").exists()
    assert command(monkeypatch, "update", folder) == 0
    entries = parse_known((tmp_path / "known.toml").read_bytes(), Path("k"))
    assert [(one.cases, one.stage) for one in entries] == [(name, Stage.TRANSFORM) for name in ids]
    list_now = (tmp_path / "known.toml").read_text()
    (tmp_path / "runs").rename(tmp_path / "before")
    done, run, _ = run_suites(tmp_path, list_now, *port)
    assert done.returncode == 0, done.stdout[-8000:]
    assert {one.outcome for one in run.records if one.case} == {Outcome.EXPECTED_FAILURE}
    assert run.end.unmatched == ()


@pytest.mark.usefixtures("broken_compiler")
def test_a_run_that_does_not(tmp_path, monkeypatch, capsys):
    """A pass, a failure at another stage and an entry that matches nothing fail it; an update makes it right."""
    text = entry("decode-*", "numerics") + entry("", "run", check="longest_match") + entry("decode-F16-gone", "run")
    selection = "-k", "longest_match or (decode and parity and zero)"
    done, run, folder = run_suites(tmp_path, text, *selection)
    assert done.returncode == 1, done.stdout[-8000:]
    assert "2 failed" in done.stdout
    said = words(done)
    for line in (
        f"{DECODE} parity from_zero_state failed at transform, but is expected to fail at numerics: made up",
        "tokenizer longest_match passes, but is expected to fail at run: made up",
        "cases = 'decode-F16-gone' matches nothing any more",
    ):
        assert f"stale expectation: {line}" in said
    assert f"rwkv-tpu known update {folder}" in said
    assert {record.check: record.outcome for record in run.records} == {
        "from_zero_state": Outcome.FAILED,
        "longest_match": Outcome.PASSED,
    }
    assert all(record.expected for record in run.records)
    assert run.end.unmatched == ("cases = 'decode-F16-gone'",)

    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "update", folder) == 0
    assert "known.toml" in capsys.readouterr().out
    (left,) = parse_known((tmp_path / "known.toml").read_bytes(), Path("k"))
    assert (left.cases, left.stage) == ("decode-*", Stage.TRANSFORM)
    now = judged(failed(stage=Stage.TRANSFORM), (tmp_path / "known.toml").read_text())
    assert now.outcome is Outcome.EXPECTED_FAILURE
