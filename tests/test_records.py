"""Records: written line by line, read back whole, and what cannot be trusted is refused by file and line."""

import errno
import json
import os
from contextlib import suppress

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.spec import Quantization
from harness.check import CHECK, Check
from harness.limits import load_limits
from harness.record_of import record_of
from harness.records import RunWriter
from harness.summary import summary
from harness.targets.base import Output
from reports.schema import VERSION, Expected, Outcome, Record, RecordsError, Run, Stage, read


def a_run(**changes):
    """The first line of a run."""
    fields = {
        "schema": VERSION,
        "id": "r1",
        "started": "2026-01-01T00:00:00+0000",
        "command": ("pytest", "suites/"),
        "target": "cmodel",
        "harness": {"version": "0"},
        "toolchain": {"version": "1.30.2", "commit": "v1.30.2-gx"},
        "checkpoint": {"name": "<b>c</b>", "n_layer": 2},
        "grid": {"name": "smoke"},
        "limits_sha256": "0",
        "machine": {"cores": 2},
        "packages": {},
    }
    return Run(**(fields | changes))


def a_record(**changes):
    """A record."""
    fields = {
        "case": "decode-F16-chunk",
        "suite": "parity",
        "check": "from_zero_state",
        "outcome": Outcome.PASSED,
        "seconds": 1.5,
        "metrics": {"kl_mean_nats": 1 / 3},
        "predicted": {"predicted_ms": 0.0554},
    }
    return Record(**(fields | changes))


def written(tmp_path, *records, end=True, run=None):
    """A records file."""
    writer = RunWriter(tmp_path / "run", run or a_run())
    for record in records:
        writer.add(record)
    if end:
        writer.end(0)
    return writer.path


@given(
    metrics=st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False), max_size=4),
    message=st.text(max_size=50),
    outcome=st.sampled_from(Outcome),
    stage=st.one_of(st.none(), st.sampled_from(Stage)),
    curve=st.dictionaries(
        st.integers(0, 4096), st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=4
    ),
)
def test_round_trip(tmp_path_factory, metrics, message, outcome, stage, curve):
    """What is written is read back, to the last digit."""
    record = a_record(metrics=metrics, message=message, outcome=outcome, stage=stage, kl_by_position=curve)
    run = read(written(tmp_path_factory.mktemp("r"), record))
    assert run.records == (record,)
    assert list(run.records[0].kl_by_position) == list(curve)
    assert not run.interrupted
    assert run.end.outcomes == {outcome.value: 1}


def test_why_a_failure_was_expected(tmp_path):
    """Reason, link and dates are kept; a file that an older harness wrote has none, and is read as before."""
    expected = Expected(reason="codegen drops the affine", link="https://example.org/1", since="2026-01-01")
    record = a_record(outcome=Outcome.EXPECTED_FAILURE, stage=Stage.CODEGEN, expected=expected)
    path = written(tmp_path, record, a_record())
    assert [one.expected for one in read(path).records] == [expected, None]
    later = {"expected", "compiled", "options", "kl_by_position"}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    older = [{name: value for name, value in line.items() if name not in later} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in older))
    assert [one.expected for one in read(path).records] == [None, None]
    assert [one.kl_by_position for one in read(path).records] == [{}, {}]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            b'"outcomes":{"passed":1}',
            b'"outcomes":{"failed":1}',
            r":3: the last line counts {'failed': 1}, but there are",
        ),
        (b'"metrics":', b'"metrix":', r":2: .*unknown field `metrix`"),
        (b'"checkpoint":', b'"checkpoint_":', r":1: .*(unknown|missing).*field `checkpoint_?`"),
    ],
)
def test_nothing_is_dropped_in_silence(tmp_path, old, new, words):
    """A last line that tells of other outcomes, or a name that nobody knows, makes a file unreadable, line and all."""
    path = written(tmp_path, a_record())
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new))
    with pytest.raises(RecordsError, match=words):
        read(path)


def test_nan_survives(tmp_path):
    """A metric that is not a number is kept as null, shown as not finite, and never read as a number."""
    path = written(tmp_path, a_record(metrics={"kl_mean_nats": float("nan")}))
    assert b"null" in path.read_bytes()
    run = read(path)
    assert run.records[0].metrics == {"kl_mean_nats": None}
    assert "not finite" in summary(run, 100)


LOGITS = np.linspace(-1.0, 1.0, 12).reshape(4, 3)


def judged(check, positions, errors):
    """Judge logits of *positions* of which one is off by each of *errors*; whether they pass is of no matter here."""
    logits = LOGITS[list(positions)].copy()
    logits[:, 0] += errors
    with suppress(AssertionError):
        check.logits(Output((0, 1, 2, 3), LOGITS, []), Output(positions, logits, []))


def recorded(request, check):
    """The record of a test that passed and judged with *check*: this one."""
    request.node.stash[CHECK] = check
    call = pytest.CallInfo.from_call(lambda: None, "call")
    return record_of(request.node, call, pytest.TestReport.from_item_and_call(request.node, call), "cmodel")


@pytest.mark.parametrize(
    ("judgements", "kept"),
    [
        ([((0, 1, 2, 3), [0.1, 0.2, 0.1, 0.1])], (0, 1, 2, 3)),
        ([((3,), 0.3), ((1, 2), [0.0, 0.7]), ((0,), 0.6)], (1, 2)),
        ([((2,), 0.5), ((1, 3), [0.1, np.nan]), ((0,), 9.0)], (1, 3)),
        ([((0, 2), [9.0, np.nan]), ((1,), 9.0)], (0, 2)),
        ([], ()),
    ],
    ids=["one", "the worst", "not finite", "not finite first", "none"],
)
def test_the_curve_of_the_worst_judgement(tmp_path, request, judgements, kept):
    """Of several judgements, positions and divergences of the one with the worst position; NaN is the worst."""
    check = Check(limits=load_limits()[0][Quantization.F16])
    for positions, errors in judgements:
        judged(check, positions, errors)
    (record,) = read(written(tmp_path, recorded(request, check))).records
    assert tuple(record.kl_by_position) == kept
    if kept:
        finite = [kl for kl in record.kl_by_position.values() if kl is not None]
        worst = record.metrics["kl_worst_nats"]
        assert (worst is None) == (None in record.kl_by_position.values())
        assert worst is None or max(finite) == float(f"{worst:.4g}")
        assert all(kl == float(f"{kl:.4g}") for kl in finite)


def test_a_full_disk_is_no_verdict(request):
    """Whatever was being written when the disk was full, the check says nothing of what was to be judged."""

    def no_space():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for error, outcome in ((no_space, Outcome.INFRA), (lambda: 1 / 0, Outcome.FAILED)):
        call = pytest.CallInfo.from_call(error, "call")
        report = pytest.TestReport.from_item_and_call(request.node, call)
        assert record_of(request.node, call, report, "cmodel").outcome is outcome


def test_interrupted(tmp_path):
    """Without its last line a run is interrupted; half a line, as a kill leaves it, is dropped."""
    path = written(tmp_path, a_record(), a_record(), end=False)
    assert read(path).interrupted
    with path.open("ab") as file:
        file.write(b'{"type":"record","case":"x"')
    run = read(path)
    assert run.interrupted
    assert len(run.records) == 2
    assert run.cut_line == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: lines[1:], r":1: should be the line of type 'run'"),
        (lambda lines: [lines[0], b"{}", *lines[1:]], ":2: "),
        (lambda lines: [lines[0], b"nonsense", *lines[1:]], ":2: "),
        (lambda lines: [lines[0], lines[0], *lines[1:]], ":2: .*stands between the records"),
        (lambda lines: [lines[0], lines[1], lines[1], lines[2]], ":4: .*counts 1 records, but there are 2"),
        (lambda lines: [lines[0].replace(b'"schema":1', b'"schema":2'), *lines[1:]], "schema version 2"),
        (lambda lines: [lines[0], lines[1].replace(b'"passed"', b'"fine"'), lines[2]], ":2: .*fine"),
        (lambda lines: lines[:0], ":1: should be"),
        (lambda lines: [lines[0], lines[1].replace(b"parity", b"p\xe4rity"), lines[2]], ":2: should be UTF-8"),
        (lambda lines: [lines[0].replace(b"smoke", b"\xff"), *lines[1:]], ":1: should be UTF-8"),
    ],
)
def test_files_that_cannot_be_trusted(tmp_path, spoil, message):
    """Each is refused with the file and, where there is one, the line."""
    path = written(tmp_path, a_record())
    lines = spoil(path.read_bytes().splitlines())
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    with pytest.raises(RecordsError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def test_summary(tmp_path):
    """A row per case with its worst figures."""
    good, bad = a_record(), a_record(outcome=Outcome.FAILED, metrics={"kl_mean_nats": 0.5})
    text = summary(read(written(tmp_path, good, bad)), 100)
    row = next(line for line in text.splitlines() if "decode-F16-chunk" in line)
    assert row.split() == ["decode-F16-chunk", "2", "1", "5.0e-01", "0.0554"]
    text = summary(read(written(tmp_path / "infra", good, a_record(outcome=Outcome.INFRA))), 100)
    row = next(line for line in text.splitlines() if "decode-F16-chunk" in line)
    assert row.split()[:4] == ["decode-F16-chunk", "2", "0", "1"]  # no verdict is no failure


def test_schema_rejects_what_it_does_not_know():
    """An outcome that is none is refused when read."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(
            b'{"type":"record","case":"","suite":"","check":"","outcome":"ok","seconds":1}', type=Record
        )
