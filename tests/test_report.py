"""Reports as files: nothing is dropped, what is broken or interrupted says so, and hostile text is harmless."""

import csv
import io
import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cli import main
from reports.case_id import CaseParts, case_parts
from reports.case_table import case_rows, reproduce
from reports.csv_file import COLUMNS, figures, write_csv
from reports.junit import write_junit
from reports.lenient import load
from reports.markdown import write_markdown
from reports.metric import Kind, measured_kind, unit_of
from reports.schema import Expected, Outcome, Record, Stage
from reports.verdict import State, verdict_of
from tests.gate_runs import DECODE, PREFILL, MadeRun, a_record, a_run
from tests.report_runs import release_run

ROOT = Path(__file__).parent.parent
HOSTILE = "</script><img src=x onerror=alert(1)>|`@all`\n\r\"',;\x00\x1b\ufffe &amp; \u2028"


def loaded(folder, *runs):
    """Made-up runs, written and read."""
    for number, made in enumerate(runs):
        made.write(folder / f"run-{number}")
    return load([folder])


def rows_of(loaded_runs, folder):
    """The CSV's rows as tables."""
    write_csv(loaded_runs, folder / "r.csv")
    with (folder / "r.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def broken_line(text):
    """A file whose third line does not parse."""
    lines = text.splitlines(keepends=True)
    lines[2] = b'{"type":"record","case":17}\n'
    return b"".join(lines)


def command(monkeypatch, *arguments):
    """The exit code of ``rwkv-tpu report``."""
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def by_pandas(loaded_runs, folder):
    """The CSV as pandas reads it without options."""
    write_csv(loaded_runs, folder / "r.csv")
    return pd.read_csv(folder / "r.csv")


# ---- reading


def test_a_broken_line(tmp_path):
    """Records before and after it are read, the line is named, and the last line's count still fits."""
    made = MadeRun((a_record(), a_record(PREFILL), a_record(check="from_random_state")), mangle=broken_line)
    found = loaded(tmp_path, made)
    (run,) = found.runs
    assert [record.case for record in run.file.records] == [DECODE, DECODE]
    assert len(found.faults) == 1
    assert f"{tmp_path}/run-0/records.jsonl:3: " in found.faults[0]
    assert run.state == "broken"
    assert not run.file.interrupted


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (MadeRun((a_record(),), end={"records": 2}), ":3: the last line counts 2 records, but there are 1"),
        (MadeRun((a_record(),), end={"outcomes": {"failed": 1}}), ":3: the last line counts {'failed': 1}"),
        (MadeRun((a_record(),), mangle=lambda text: text + text.splitlines(keepends=True)[1]), ":3: a line of type"),
        (MadeRun((a_record(), a_record()), end={"records": 2}), "from_zero_state stands there 2 times"),
        (MadeRun((a_record(),), mangle=lambda text: text.replace(b'"metrics"', b'"metrix"')), "unknown field `metrix`"),
        (MadeRun((a_record(),), mangle=lambda text: b"\xff" + text), ":1: should be the line of type 'run'"),
        (MadeRun((a_record(),), mangle=lambda text: text[20:]), ":1: should be the line of type 'run'"),
        (MadeRun((a_record(),), mangle=lambda _: b""), ":1: should be the line of type 'run'"),
        (MadeRun((a_record(),), run={"schema": 99}), ":1: schema version 99"),
        (MadeRun((a_record(),), mangle=lambda text: text.replace(b"parity", b"par\xffty")), ":2: "),
    ],
)
def test_files_that_cannot_be_trusted(tmp_path, made, fault):
    """Each is told with file and line, and none passes."""
    found = loaded(tmp_path, made)
    assert any(fault in one and str(tmp_path) in one for one in found.faults), found.faults
    assert verdict_of(found).state is State.BAD
    assert verdict_of(found).headline.startswith("Cannot be trusted")


def test_a_cut_line_behind_the_end(tmp_path):
    """Somebody went on writing after the last line: that run did not come to its end."""
    found = loaded(tmp_path, MadeRun((a_record(),), mangle=lambda text: text + b"{"))
    assert found.runs[0].state == "interrupted"


def test_runs_are_found_once(tmp_path):
    """A file, a folder, a folder of folders; what is named twice is read once; nothing there is an error."""
    (tmp_path / "empty").mkdir()
    one = tmp_path / "runs" / "run-0"
    assert len(loaded(tmp_path / "runs", MadeRun((a_record(),)), MadeRun((a_record(),))).runs) == 2
    assert len(load([tmp_path / "runs", one, one / "records.jsonl"]).runs) == 2
    for nothing in ("empty", "absent"):
        with pytest.raises(FileNotFoundError, match="should be a run's folder"):
            load([tmp_path / nothing])


# ---- verdict


@pytest.mark.parametrize(
    ("records", "complete", "headline", "state"),
    [
        ([a_record()], True, "All 1 checks passed or were skipped", State.GOOD),
        (
            [a_record(), a_record(outcome=Outcome.EXPECTED_FAILURE)],
            True,
            "All 2 checks passed, were skipped or failed as expected",
            State.GOOD,
        ),
        ([a_record(), a_record(outcome=Outcome.FAILED)], True, "1 of 2 checks failed", State.BAD),
        ([a_record(), a_record(outcome=Outcome.INFRA)], True, "1 of 2 checks without a verdict", State.DOUBTFUL),
        (
            [a_record(outcome=Outcome.FAILED), a_record(outcome=Outcome.INFRA)],
            True,
            "1 of 2 checks failed, 1 without a verdict",
            State.BAD,
        ),
        ([a_record()], False, "Interrupted", State.DOUBTFUL),
        ([a_record(outcome=Outcome.FAILED)], False, "Interrupted", State.BAD),
        ([], True, "Nothing measured", State.DOUBTFUL),
        ([a_record(outcome=Outcome.SKIPPED)], True, "Nothing measured: all 1 check skipped", State.DOUBTFUL),
    ],
)
def test_verdict(tmp_path, records, complete, headline, state):
    """In a few words, and never better than the worst that is there."""
    checks = [msgspec.structs.replace(record, check=f"check {i}") for i, record in enumerate(records)]
    verdict = verdict_of(loaded(tmp_path, MadeRun(tuple(checks), complete=complete)))
    assert (verdict.headline, verdict.state) == (headline, state)


def test_interrupted_everywhere(tmp_path, monkeypatch, capsys):
    """A run without its last line is called interrupted in every format and by the command."""
    MadeRun((a_record(),), complete=False, mangle=lambda text: text + b'{"type":"rec').write(tmp_path / "run")
    formats = [word for form in ("csv", "html", "junit", "markdown") for word in ("--format", form)]
    assert command(monkeypatch, tmp_path / "run", *formats) == 0
    assert "interrupted" in capsys.readouterr().err
    for name in ("records.csv", "index.html", "junit.xml", "report.md"):
        assert "interrupted" in (tmp_path / "run" / name).read_text().lower(), name
    assert "line 3 is cut" in (tmp_path / "run" / "index.html").read_text()


# ---- pandas


def test_pandas_reads_a_release(tmp_path):
    """Without options: every row and column, numbers as numbers, to the last digit but one."""
    found = loaded(tmp_path, release_run(board=True), release_run(id="r1", seed=1))
    table, rows = by_pandas(found, tmp_path), rows_of(found, tmp_path)
    values = [value for run in found.runs for record in run.file.records for *_, value in figures(record)]
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == len(values) > 1000
    assert table.value.dtype == table.chunk.dtype == float
    assert table.value.tolist() == pytest.approx(values, rel=1e-15, nan_ok=True)
    for name in set(COLUMNS) - {"value", "chunk", "target"}:
        assert table[name].fillna("").tolist() == [row[name] for row in rows], name


def test_pandas_reads_hostile_text(tmp_path):
    """Text that looks like the end of a cell, a line or a file stays one cell, and no row is lost."""
    text = HOSTILE.replace("\0", "")
    record = a_record(text, text, metrics={text: None}, outcome=Outcome.FAILED, message=text)
    table = by_pandas(loaded(tmp_path, MadeRun((record, a_record()), {"id": text})), tmp_path)
    rows = rows_of(load([tmp_path]), tmp_path)
    assert len(table) == len(rows)
    for name in ("run", "case", "check", "metric", "message"):
        assert table[name].fillna("").tolist() == [row[name] for row in rows], name
    assert set(table.run) == {text}
    assert text in set(table.metric)


def test_pandas_with_a_nul(tmp_path):
    """Which no text has that pytest or a compiler writes: no row is lost and no other cell is changed."""
    found = loaded(tmp_path, MadeRun((a_record(message=HOSTILE), a_record(PREFILL))))
    table, rows = by_pandas(found, tmp_path), rows_of(found, tmp_path)
    assert len(table) == len(rows)
    assert table.metric.tolist() == [row["metric"] for row in rows]


def test_the_pivot_of_the_documentation(tmp_path):
    """What docs/reports.md shows works on a release with options of the compiler, as it stands there."""
    (code,) = re.findall(r"```python\n(table = pandas.*?)```", (ROOT / "docs" / "reports.md").read_text(), re.DOTALL)
    by_pandas(loaded(tmp_path, release_run()), tmp_path)
    code = code.replace("records.csv", str(tmp_path / "r.csv"))
    *before, last = code.strip().splitlines()
    names = {"pandas": pd}
    exec("\n".join(before), names)  # noqa: S102 - ours
    pivot = eval(last, names)  # noqa: S307 - same
    assert pivot.shape == (8, 7)  # four precisions, with and without an option; seven graphs
    assert pivot.notna().all(axis=None)


# ---- the parts of a case, metrics


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("decode-F16-chunk", CaseParts(graph="decode", chunk=1, quantization="F16", variant="chunk")),
        (
            "prefill_all_64-W4F16-loop+opt1+quant_output",
            CaseParts(graph="prefill_all", chunk=64, quantization="W4F16", variant="loop", options="opt1+quant_output"),
        ),
        ("something else", CaseParts(graph="something else")),
        ("", CaseParts(graph="")),
    ],
)
def test_case_parts(case, parts):
    """An id of another form is kept whole."""
    assert case_parts(case) == parts


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("kl_worst_nats", "nats"),
        ("decode_p95_ms_at_2048", "ms"),
        ("decode_tokens_per_s_at_0", "tokens/s"),
        ("chip_temperature_highest_c", "°C"),
        ("positions", "count"),
        ("state_nmse", ""),
        ("compile_seconds", "s"),
    ],
)
def test_units(name, unit):
    """The unit stands at the end of the name."""
    assert unit_of(name) == unit


def test_the_simulators_time_is_no_measurement(tmp_path):
    """What the simulator's process took is of a kind of its own, and in no column to choose a model by."""
    assert measured_kind("simulator_wall_decode_ms_at_0") is Kind.SIMULATOR_WALL
    assert measured_kind("decode_ms_at_0") is Kind.MEASURED
    on_simulator, on_board = (
        case_rows(loaded(tmp_path / str(board), release_run(board=board)))[0].figures for board in (False, True)
    )
    assert "measured_token_ms" not in on_simulator
    assert on_board["measured_token_ms"] > 0
    assert {row["kind"] for row in rows_of(load([tmp_path / "False"]), tmp_path) if row["unit"] == "ms"} == {
        "predicted",
        "simulator_wall",
    }


def test_reproduce():
    """As the run was started, but for the choice of tests: an id in brackets is not a part of a longer one."""
    run = a_run(command=("/x/.venv/bin/pytest", "suites/", "-k", "old", "-kolder", "--grid", "my grid"))
    assert reproduce(run, DECODE) == f"pytest suites/ --grid 'my grid' -k '[{DECODE}]'"
    assert reproduce(run, "", "round_trip (setup)") == "pytest suites/ --grid 'my grid' -k round_trip"
    assert reproduce(run, "", "canary before the first case") == "pytest suites/ --grid 'my grid'"
    assert reproduce(a_run(command=()), "a'; rm x") == """pytest suites/"""


# ---- CSV

numbers = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**53), 2**53))
# What JSON can carry: any text but half a pair of surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=60)
@given(
    case=texts,
    suite=texts,
    message=texts,
    metrics=st.dictionaries(texts, numbers, max_size=4),
    outcome=st.sampled_from(Outcome),
    stage=st.none() | st.sampled_from(Stage),
)
def test_csv_round_trip(tmp_path_factory, case, suite, message, metrics, outcome, stage):
    """Every figure comes back to the last digit, with every text, from the reader of the standard library.

    Curves have no rows.
    """
    folder = tmp_path_factory.mktemp("r")
    record = Record(
        case=case,
        suite=suite,
        check="c",
        outcome=outcome,
        stage=stage,
        message=message,
        seconds=0.1,
        metrics=metrics,
        kl_by_position={0: 1e-5, 1: None},
    )
    rows = rows_of(loaded(folder / "runs", MadeRun((record,))), folder)
    assert len(rows) == len(metrics) + 1
    for row, (name, value) in zip(rows, [*metrics.items(), ("check_seconds", 0.1)], strict=True):
        assert list(row) == list(COLUMNS)
        assert (row["case"], row["suite"], row["metric"]) == (case, suite, name)
        assert (row["outcome"], row["stage"]) == (outcome.value, stage.value if stage else "")
        assert row["message"] == next(iter(message.splitlines()), "")
        assert math.isnan(float(row["value"])) if value is None else float(row["value"]) == value


def test_csv_columns(tmp_path):
    """What a table needs to be grouped by stands in each row."""
    rows = rows_of(loaded(tmp_path / "runs", release_run(board=True)), tmp_path)
    (row,) = [
        row
        for row in rows
        if row["case"] == "prefill_all_32-W8F16-chunk+opt1" and row["metric"] == "ddr_read_bytes"
        if row["check"] == "from_zero_state"
    ]
    wanted = {"run": "r0", "run_state": "complete", "target": "0", "toolchain": "1.30.2", "graph": "prefill_all"}
    wanted |= {"chunk": "32", "quantization": "W8F16", "variant": "chunk", "options": "opt1", "kind": "predicted"}
    wanted |= {"unit": "bytes", "value": "251032000", "checkpoint": "rwkv7-g1-0.1b"}
    assert wanted.items() <= row.items()


# ---- JUnit


def test_junit_counts(tmp_path):
    """It parses, and its counts are those of its cases and of the records."""
    outcomes = [*Outcome, Outcome.FAILED]
    records = tuple(a_record(check=f"c{n}", outcome=outcome, message="why") for n, outcome in enumerate(outcomes))
    found = loaded(tmp_path / "runs", MadeRun(records), MadeRun((a_record(),), complete=False, run={"id": "r1"}))
    write_junit(found, tmp_path / "j.xml")
    root = ET.parse(tmp_path / "j.xml").getroot()  # noqa: S314 - our own file
    for suite in [root, *root]:
        cases = list(suite.iter("testcase"))
        assert int(suite.get("tests")) == len(cases)
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.get(attribute)) == sum(case.find(tag) is not None for case in cases)
    assert [root.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["8", "2", "2", "2"]
    assert "interrupted after 1 checks" in ET.tostring(root).decode()


def test_junit_of_what_cannot_be_read(tmp_path):
    """A broken line and a file without a first line are errors, so that a pipeline cannot overlook them."""
    made = MadeRun((a_record(), a_record(PREFILL)), mangle=broken_line)
    write_junit(loaded(tmp_path / "runs", made, MadeRun((), mangle=lambda _: b"{}\n")), tmp_path / "j.xml")
    root = ET.parse(tmp_path / "j.xml").getroot()  # noqa: S314 - our own file
    messages = [error.get("message") for error in root.iter("error")]
    assert len(messages) == 2
    assert any("run-0/records.jsonl:3: " in message for message in messages)
    assert any("run-1/records.jsonl:1: " in message for message in messages)


@given(text=texts)
def test_any_text_is_xml(tmp_path_factory, text):
    """Whatever stands in a message, the file parses."""
    folder = tmp_path_factory.mktemp("r")
    record = Record(case=text, suite="s", check=text, outcome=Outcome.FAILED, message=text, seconds=1.0)
    write_junit(loaded(folder / "runs", MadeRun((record,))), folder / "j.xml")
    assert ET.parse(folder / "j.xml").getroot().get("failures") == "1"  # noqa: S314 - our own file


# ---- Markdown


def test_markdown(tmp_path):
    """Verdict, what failed, a table, what is left out; short enough for a comment."""
    write_markdown(loaded(tmp_path / "runs", release_run()), tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert text.startswith("## ❌ 1 of 169 checks failed\n")
    assert "`kl_worst_nats=3.10e-03" not in text
    assert "`AssertionError: kl_worst_nats=3.10e-03 at position 41, but should be <= 1.0e-03`" in text
    assert "`the allocator aborts on chunks of 64 with opt1; since 2025-10-02`" in text
    assert "… and 36 more cases." in text
    assert len(text) < 10_000


@given(text=texts)
def test_any_text_is_markdown(tmp_path_factory, text):
    """Text of records stays in its code span and in its cell."""
    folder = tmp_path_factory.mktemp("r")
    record = Record(case=text, suite="s", check="c", outcome=Outcome.FAILED, message=text, seconds=1.0)
    write_markdown(loaded(folder / "runs", MadeRun((record,))), folder / "r.md")
    lines = (folder / "r.md").read_text().split("\n")
    for line in lines:
        if line.startswith("|"):
            assert line.count("|") in {4, 7}, line
        assert line.count("`") % 2 == 0


# ---- the command


def test_not_finite(tmp_path, monkeypatch):
    """NaN is said in words, and is no number in any file."""
    MadeRun((a_record(metrics={"kl_mean_nats": math.nan}),)).write(tmp_path / "run")
    formats = [word for form in ("csv", "html", "markdown") for word in ("--format", form)]
    assert command(monkeypatch, tmp_path / "run", *formats) == 0
    assert "kl_mean_nats,measured,nan,nats" in (tmp_path / "run" / "records.csv").read_text()
    for name in ("index.html", "report.md"):
        assert "not finite" in (tmp_path / "run" / name).read_text()


def test_command(tmp_path, monkeypatch, capsys):
    """A run's report goes into its folder, that of several into one that is named."""
    release_run().write(tmp_path / "runs" / "a")
    release_run(board=True, id="r2").write(tmp_path / "runs" / "b")
    assert command(monkeypatch, tmp_path / "runs" / "a") == 0
    assert sorted(path.name for path in (tmp_path / "runs" / "a").iterdir()) == [
        "index.html",
        "records.csv",
        "records.jsonl",
    ]
    out = tmp_path / "out"
    assert command(monkeypatch, tmp_path / "runs", "--out", out, "--format", "csv", "--format", "junit") == 0
    assert sorted(path.name for path in out.iterdir()) == ["junit.xml", "records.csv"]
    with (out / "records.csv").open(newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} == {"r0", "r2"}
    assert str(out / "junit.xml") in capsys.readouterr().out


def test_command_with_a_broken_line(tmp_path, monkeypatch, capsys):
    """The report is written, the line is named on it and in the terminal, and the exit code says so."""
    MadeRun((a_record(), a_record(PREFILL)), mangle=broken_line).write(tmp_path / "run")
    assert command(monkeypatch, tmp_path / "run", "--format", "html", "--format", "markdown", "--format", "csv") == 1
    named = f"{tmp_path}/run/records.jsonl:3: "
    assert named in capsys.readouterr().err
    for name in ("index.html", "report.md"):
        assert named in (tmp_path / "run" / name).read_text(), name
    assert ",broken," in (tmp_path / "run" / "records.csv").read_text()


def test_command_without_a_run(tmp_path, monkeypatch, capsys):
    """Nothing there, a format that is none, a folder that cannot be: code 2 and what to do."""
    assert command(monkeypatch, tmp_path) == 2
    assert "should be a run's folder" in capsys.readouterr().err
    assert command(monkeypatch, tmp_path, "--format", "pdf") == 2
    MadeRun((a_record(),)).write(tmp_path / "run")
    (tmp_path / "file").touch()
    assert command(monkeypatch, tmp_path / "run", "--out", tmp_path / "file" / "x", "--format", "csv") == 2
    assert "--out" in capsys.readouterr().err


def test_hostile_text_in_every_file(tmp_path, monkeypatch):
    """It stays text: the CSV has it whole, the others have nothing that acts."""
    record = a_record(
        HOSTILE, outcome=Outcome.EXPECTED_FAILURE, message=HOSTILE, expected=Expected(reason=HOSTILE, link=HOSTILE)
    )
    MadeRun((record,), {"checkpoint": {"name": HOSTILE}, "id": HOSTILE}).write(tmp_path / "run")
    formats = [word for form in ("csv", "html", "junit", "markdown") for word in ("--format", form)]
    assert command(monkeypatch, tmp_path / "run", *formats) == 0
    page = (tmp_path / "run" / "index.html").read_text()
    assert "<img src=x" not in page
    ET.parse(tmp_path / "run" / "junit.xml")  # noqa: S314 - our own file
    rows = list(csv.DictReader(io.StringIO((tmp_path / "run" / "records.csv").read_bytes().decode(), newline="")))
    assert {row["case"] for row in rows} == {HOSTILE}
    assert "\n" + HOSTILE.split("\n")[1] not in (tmp_path / "run" / "report.md").read_text()
