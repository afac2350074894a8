"""Records: written line by line, read back whole, and what cannot be trusted is refused by file and line."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.records import RunWriter
from harness.summary import summary
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
)
def test_round_trip(tmp_path_factory, metrics, message, outcome, stage):
    """What is written is read back, to the last digit."""
    record = a_record(metrics=metrics, message=message, outcome=outcome, stage=stage)
    run = read(written(tmp_path_factory.mktemp("r"), record))
    assert run.records == (record,)
    assert not run.interrupted
    assert run.end.outcomes == {outcome.value: 1}


def test_why_a_failure_was_expected(tmp_path):
    """Reason, link and dates are kept; a file that an older harness wrote has none, and is read as before."""
    expected = Expected(reason="codegen drops the affine", link="https://example.org/1", since="2026-01-01")
    record = a_record(outcome=Outcome.EXPECTED_FAILURE, stage=Stage.CODEGEN, expected=expected)
    path = written(tmp_path, record, a_record())
    assert [one.expected for one in read(path).records] == [expected, None]
    text = path.read_bytes()
    path.write_bytes(
        text.replace(b'"expected":', b'"x":').replace(b'"compiled":', b'"y":').replace(b'"options":', b'"z":')
    )
    assert [one.expected for one in read(path).records] == [None, None]


def test_nan_survives(tmp_path):
    """A metric that is not a number is kept as null, shown as not finite, and never read as a number."""
    path = written(tmp_path, a_record(metrics={"kl_mean_nats": float("nan")}))
    assert b"null" in path.read_bytes()
    run = read(path)
    assert run.records[0].metrics == {"kl_mean_nats": None}
    assert "not finite" in summary(run, 100)


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
