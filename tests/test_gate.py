"""The gate against a table of made-up pairs of sides, through the command, with exit codes."""

import json
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

from harness.cli import main
from reports.schema import Outcome, Stage
from tests.gate_runs import DECODE, PREDICTED, PREFILL, TIMES, MadeRun, a_record, failed, launches


def one(*records, **changes):
    """A side of one run."""
    return [MadeRun(records, **changes)]


def times(scale=1.0, n=10, first=0, sd=0.005, name="decode_ms_at_0", better=1, **run):
    """A side of a board's runs, whose first metric is *scale* times as large."""
    rng = np.random.default_rng(first)
    tables = [TIMES | {name: 5.0 * scale**better * float(np.exp(rng.normal(0, sd)))} for _ in range(n)]
    return launches(tables, first=first, **run)


def with_value(value, n=10, first=0, name="decode_ms_at_0"):
    """A side of a board's runs with one value in all of them."""
    return launches([TIMES | {name: value}] * n, first=first)


def changed(made, index, **changes):
    """The same side, with one run changed."""
    return [replace(run, **changes) if at == index else run for at, run in enumerate(made)]


@dataclass(frozen=True)
class Pair:
    """Two sides and what the gate should say."""

    name: str
    base: list[MadeRun]
    new: list[MadeRun]
    code: int
    says: str = ""
    args: tuple[str, ...] = ()
    rules: str = ""


def compiles(seconds):
    """A side of runs, each of which tells of a compile in the records of two checks."""
    made = []
    for index, one in enumerate(seconds):
        records = [a_record(check=check, compiled={"compile_seconds": one}) for check in "ab"]
        made.append(MadeRun(tuple(records), {"id": f"r{index}"}))
    return made


def older(text):
    """What an older harness would have written: no options, no hashes of data."""
    first, _, rest = text.partition(b"\n")
    run = {name: value for name, value in json.loads(first).items() if name not in {"options", "data"}}
    return json.dumps(run).encode() + b"\n" + rest


SECONDS = [8.0 + 0.01 * index for index in range(10)]
GOOD = one(a_record(), a_record(PREFILL))
SKIPPED = Outcome.SKIPPED
EXPECTED = Outcome.EXPECTED_FAILURE
RELEASE = {"run": {"toolchain": {"version": "1.31.0", "identity": "i1"}}}
BASE_TIMES = times(first=0)

PAIRS = [
    Pair("the same", GOOD, GOOD, 0, "exit code 0: pass"),
    Pair("another commit", GOOD, one(a_record(), a_record(PREFILL), run={"harness": {"commit": "c1"}}), 0, "c0 -> c1"),
    Pair(
        "changed files",
        GOOD,
        one(a_record(), a_record(PREFILL), run={"harness": {"changed": "true"}}),
        0,
        "does not tell what ran",
    ),
    Pair(
        "times shown by a rule",
        times(n=1),
        times(2, n=1, first=1),
        0,
        "CHANGED, NO VERDICT: 1",
        rules='[[rule]]\nmetrics = ["*_ms", "*_ms_at_*", "host_memory_bytes"]\ncompare = "shown"',
    ),
    # Outcomes.
    Pair("fails", GOOD, one(a_record(), failed(PREFILL)), 1, "passed -> failed at numerics"),
    Pair("repaired", one(failed()), one(a_record()), 0, "IMPROVED"),
    Pair("fails in both", one(failed()), one(failed()), 3, "fails on both sides"),
    Pair("fails earlier", one(failed()), one(failed(stage=Stage.LOWER)), 1, "at an earlier stage"),
    Pair("fails later", one(failed(stage=Stage.LOWER)), one(failed()), 3, "fails on both sides"),
    Pair("now expected to fail", one(a_record()), one(a_record(outcome=EXPECTED)), 1, "it passed before"),
    Pair("expected failure passes", one(a_record(outcome=EXPECTED)), one(a_record()), 2, "make a new baseline"),
    Pair("expected failure in both", one(a_record(outcome=EXPECTED)), one(a_record(outcome=EXPECTED)), 0),
    Pair("skipped now", GOOD, one(a_record(), a_record(PREFILL, outcome=SKIPPED)), 3, "no longer measured"),
    Pair(
        "skipped now, in its setup",
        GOOD,
        one(a_record(), a_record(PREFILL, "from_zero_state (setup)", outcome=SKIPPED)),
        3,
        "passed -> skipped",
    ),
    Pair("skipped before", one(a_record(), a_record(PREFILL, outcome=SKIPPED)), GOOD, 3, "never measured it"),
    Pair("all skipped", one(a_record(outcome=SKIPPED)), one(a_record(outcome=SKIPPED)), 3, "nothing was measured"),
    Pair("teardown fails", one(a_record()), one(a_record(), failed(check="from_zero_state (teardown)")), 1, "failed"),
    # Cases that are not on both sides.
    Pair("vanished", GOOD, one(a_record()), 3, "vanished"),
    Pair("appeared", one(a_record()), GOOD, 3, "never measured it"),
    Pair(
        "renamed",
        one(a_record("prefill_16-F16-old", bmodel_sha256="b")),
        one(a_record("prefill_16-F16-new", bmodel_sha256="b")),
        3,
        "prefill_16-F16-new is the same bmodel: renamed?",
    ),
    Pair("duplicated", one(a_record()), one(a_record(), a_record()), 3, "stands there 2 times"),
    # Exact metrics.
    Pair(
        "one cycle more", GOOD, one(a_record(), a_record(PREFILL, predicted={"predicted_cycles": 54901})), 1, "54,901"
    ),
    Pair("one cycle less", GOOD, one(a_record(), a_record(PREFILL, predicted={"predicted_cycles": 54899})), 0, "IMPR"),
    Pair("one byte more", GOOD, one(a_record(), a_record(PREFILL, predicted={"ddr_read_bytes": 1_500_001})), 1, "001"),
    Pair("one instruction more", one(a_record()), one(a_record(predicted={"tiu_instructions": 401})), 1, "401"),
    Pair(
        "a byte within a rule's limit",
        one(a_record()),
        one(a_record(predicted={"ddr_read_bytes": 1_500_001})),
        0,
        rules='[[rule]]\nmetrics = ["ddr_*"]\nratio = 1.01',
    ),
    Pair(
        "KL twice as large",
        one(a_record()),
        one(a_record(metrics={"kl_mean_nats": 1.4e-5})),
        1,
        "x1.25 and +1e-06\n    x2\n",
    ),
    Pair(
        "a large KL a tenth larger",
        one(a_record(metrics={"kl_mean_nats": 5e-5})),
        one(a_record(metrics={"kl_mean_nats": 5.5e-5})),
        0,
    ),
    Pair("KL a little larger", one(a_record()), one(a_record(metrics={"kl_mean_nats": 7.4e-6})), 0),
    Pair(
        "KL from zero to rounding",
        one(a_record(metrics={"kl_mean_nats": 0.0})),
        one(a_record(metrics={"kl_mean_nats": 1e-9})),
        0,
    ),
    Pair("KL from zero to something", one(a_record(metrics={"kl_mean_nats": 0.0})), one(a_record()), 1, "0 -> 7e-06"),
    Pair("top-1 lower", one(a_record()), one(a_record(metrics={"top1_share": 0.99})), 1, "1 -> 0.99"),
    Pair("NaN now", one(a_record()), one(a_record(metrics={"state_nmse": None})), 1, "NaN or infinite"),
    Pair("NaN before", one(a_record(metrics={"state_nmse": None})), one(a_record()), 3, "baseline has no finite"),
    Pair("NaN in both", one(a_record(metrics={"state_nmse": None})), one(a_record(metrics={"state_nmse": None})), 3),
    Pair("a metric is missing", one(a_record()), one(a_record(metrics={"state_nmse": "absent"})), 3, "not measured"),
    Pair("a metric is new", one(a_record(metrics={"state_nmse": "absent"})), one(a_record()), 3, "baseline has no"),
    Pair("no prediction", one(a_record()), one(a_record(predicted=dict.fromkeys(PREDICTED, "absent"))), 3, "absent"),
    Pair("a metric without a rule", one(a_record(metrics={"x": 1.0})), one(a_record(metrics={"x": 2.0})), 2, "no rule"),
    Pair("another prompt", one(a_record()), one(a_record(metrics={"positions": 32.0})), 3, "not asked the same"),
    Pair(
        "simulator's wall time",
        one(a_record(metrics={"simulator_wall_ttft_ms": 1.0})),
        one(a_record(metrics={"simulator_wall_ttft_ms": 9.0})),
        0,
    ),
    # What the compile took.
    Pair("a larger bmodel", GOOD, one(a_record(), a_record(PREFILL, compiled={"bmodel_bytes": 6_848_513})), 1, "x(1+"),
    Pair("a smaller bmodel", GOOD, one(a_record(), a_record(PREFILL, compiled={"bmodel_bytes": 6_848_511})), 0, "IMPR"),
    Pair("no size", GOOD, one(a_record(), a_record(PREFILL, compiled={"bmodel_bytes": "absent"})), 3, "not measured"),
    Pair("one compile, slower", compiles([8.0]), compiles([16.5]), 0, "measured 1 and 1 times: no verdict"),
    Pair("one compile, hardly slower", compiles([8.0]), compiles([8.5]), 0, "exit code 0: pass"),
    Pair("many compiles, slower", compiles(SECONDS), compiles([1.3 * s for s in SECONDS]), 1, "REGRESSION: 1\n"),
    Pair("many compiles, as fast", compiles(SECONDS), compiles(SECONDS[::-1]), 0, "exit code 0: pass"),
    Pair("one compile in many runs", compiles([8.0] * 10), compiles([16.0] * 10), 0, "measured 1 and 1 times"),
    # Releases.
    Pair(
        "another release, another estimate",
        GOOD,
        one(a_record(predicted={"predicted_cycles": 99999}), a_record(PREFILL), **RELEASE),
        0,
        "two releases' est",
    ),
    Pair(
        "another release, more bytes",
        GOOD,
        one(a_record(predicted={"ddr_read_bytes": 1_600_000}), a_record(PREFILL), **RELEASE),
        1,
        "x1.067",
    ),
    Pair(
        "another release and another commit",
        GOOD,
        one(a_record(), a_record(PREFILL), run={**RELEASE["run"], "harness": {"commit": "c1"}}),
        3,
        "--allow toolchain\n",
    ),
    Pair(
        "the same, the commit allowed",
        GOOD,
        one(a_record(), a_record(PREFILL), run={**RELEASE["run"], "harness": {"commit": "c1"}}),
        0,
        args=("--allow", "harness"),
    ),
    # Manifests.
    Pair("another machine", GOOD, one(*GOOD[0].records, run={"machine": {"processor": "p1"}}), 3, "machine.processor"),
    Pair(
        "another machine, allowed",
        GOOD,
        one(*GOOD[0].records, run={"machine": {"processor": "p1"}}),
        0,
        args=("--allow", "machine.processor"),
    ),
    Pair(
        "another entry allowed",
        GOOD,
        one(*GOOD[0].records, run={"machine": {"processor": "p1"}}),
        3,
        args=("--allow", "machine.cores"),
    ),
    Pair("another checkpoint", GOOD, one(*GOOD[0].records, run={"checkpoint": {"sha256": "s1"}}), 3, "checkpoint.sha"),
    Pair(
        "another checkpoint, worse",
        one(a_record()),
        one(failed(), run={"checkpoint": {"sha256": "s1"}}),
        3,
        "differ in more",
    ),
    Pair("another target", GOOD, one(*GOOD[0].records, run={"target": "0"}), 3, "cmodel -> 0"),
    Pair("another package", GOOD, one(*GOOD[0].records, run={"packages": {"numpy": "3"}}), 3, "numpy 2 -> numpy 3"),
    Pair("another library", one(a_record()), one(a_record(runtime={"libbmlib": "2"})), 3, "runtime.libbmlib"),
    Pair("a name that nothing has", GOOD, GOOD, 3, "no such part", args=("--allow", "machines")),
    Pair("other depths", GOOD, one(*GOOD[0].records, run={"options": {"depths": "0,512"}}), 3, "absent -> 0,512"),
    Pair("an option told elsewhere", GOOD, one(*GOOD[0].records, run={"options": {"grid": "./smoke.toml"}}), 0),
    Pair("another time limit", GOOD, one(*GOOD[0].records, run={"options": {"stage-timeout": "7200.0"}}), 0),
    Pair("an older harness, without options", one(*GOOD[0].records, mangle=older), GOOD, 0, "exit code 0: pass"),
    Pair("another vocabulary", GOOD, one(*GOOD[0].records, run={"data": {"vocabulary": "v1"}}), 3, "data.vocabulary"),
    # Files.
    Pair("interrupted", GOOD, one(*GOOD[0].records, complete=False), 3, "interrupted after 2 records"),
    Pair("interrupted, and worse", GOOD, one(failed(), complete=False), 1, "also 3: nothing measured"),
    Pair(
        "a corrupted line",
        GOOD,
        one(*GOOD[0].records, mangle=lambda text: text.replace(b'"suite"', b'"sui', 1)),
        3,
        "records.jsonl:2",
    ),
    Pair(
        "a byte that is no text", GOOD, one(*GOOD[0].records, mangle=lambda text: text.replace(b"parity", b"\xff")), 3
    ),
    Pair("a cut last line", GOOD, one(*GOOD[0].records, mangle=lambda text: text[:-5]), 3, "interrupted"),
    Pair("the footer counts otherwise", GOOD, one(*GOOD[0].records, end={"records": 3}), 3, "counts 3 records"),
    Pair("the footer's outcomes disagree", GOOD, one(*GOOD[0].records, end={"outcomes": {"failed": 2}}), 3, "counts"),
    Pair("the footer's status disagrees", one(failed()), one(failed(), end={"exit_status": 0}), 3, "exit status 0"),
    Pair("pytest broke", GOOD, one(*GOOD[0].records, end={"exit_status": 3}), 3, "ended with 3"),
    Pair("an empty file", GOOD, one(mangle=lambda _: b""), 3, "should be the line of type 'run'"),
    Pair("an empty run", GOOD, one(), 3, "the run is empty"),
    Pair("both are empty", one(), one(), 3, "the run is empty"),
    Pair("no runs", GOOD, [], 3, "no records.jsonl is there"),
    Pair("the baseline was never measured", [], GOOD, 3, "no records.jsonl is there"),
    Pair("a copy among the repeats", GOOD, [GOOD[0], GOOD[0]], 3, "a copy is no repeat"),
    # Infrastructure.
    Pair(
        "no verdict",
        GOOD,
        one(a_record(), a_record(PREFILL, outcome=Outcome.INFRA, message="the board is gone")),
        4,
        "is gone",
    ),
    Pair(
        "no verdict on what is new",
        one(a_record()),
        one(a_record(), a_record(PREFILL, outcome=Outcome.INFRA)),
        3,
        "also 4: device",
    ),
    Pair(
        "a canary failed",
        one(a_record()),
        one(a_record(), a_record("", "canary after the last case", suite="device", outcome=Outcome.INFRA)),
        4,
        "canary",
    ),
    Pair(
        "sick, worse and less",
        one(a_record(), a_record(PREFILL), a_record("", "x")),
        one(failed(), a_record(PREFILL, outcome=Outcome.INFRA)),
        1,
        "also 3: nothing measured or not comparable, 4: ",
    ),
    # Repeats of exact metrics.
    Pair(
        "one repeat is worse",
        one(a_record()),
        [MadeRun((a_record(),)), MadeRun((a_record(predicted={"ddr_read_bytes": 1_500_001}),), {"id": "r1"})],
        1,
        "1,500,000 -> 1,500,001",
    ),
    Pair(
        "one repeat of the baseline was worse",
        [MadeRun((a_record(),)), MadeRun((a_record(metrics={"top1_share": 0.99}),), {"id": "r1"})],
        one(a_record()),
        0,
        "0.99 -> 1",
    ),
    Pair("one repeat fails", one(a_record()), [MadeRun((a_record(),)), MadeRun((failed(),), {"id": "r1"})], 1),
    Pair("not in every repeat", one(a_record()), [*GOOD, MadeRun((a_record(),), {"id": "r1"})], 3, "in 1 of 2 runs"),
    Pair(
        "no repeat of the same",
        one(a_record()),
        [MadeRun((a_record(),)), MadeRun((a_record(),), {"id": "r1", "grid": {"name": "other"}})],
        3,
        "is no repeat",
    ),
    # Noisy metrics.
    Pair("noise", BASE_TIMES, times(first=1), 0, "2 of them with chance in them"),
    Pair("5 % slower", BASE_TIMES, times(1.05, first=1), 1, "decode_ms_at_0"),
    Pair("5 % faster", BASE_TIMES, times(1 / 1.05, first=1), 0, "IMPROVED"),
    Pair("surely 1 % slower", times(sd=1e-4), times(1.01, first=1, sd=1e-4), 0, "worse, but within the limit"),
    Pair("3 % slower, in noise of 5 %", times(sd=0.05), times(1.03, first=1, sd=0.05), 0),
    Pair(
        "surely 6 % slower, but two launches of a side lie 10 % apart",
        launches([{"decode_ms_at_0": x} for x in [5.0, 5.5] * 20]),
        launches([{"decode_ms_at_0": 1.06 * x} for x in [5.0, 5.5] * 20], first=1),
        0,
        "limit x1.1, the A/A noise",
    ),
    Pair(
        "a rate 5 % lower",
        times(name="tokens_s"),
        times(1 / 1.05, first=1, name="tokens_s"),
        1,
        "as bad",
        rules='[[rule]]\nmetrics = ["tokens_s"]\ncompare = "noisy"\nbetter = "higher"\nratio = 1.02',
    ),
    Pair("one launch a side", times(n=1), times(n=1, first=1), 3, "1 and 1 launches can tell nothing"),
    Pair("one launch, twice as slow", times(n=1), times(2, n=1, first=1), 3, "it takes 5 a side"),
    Pair("three launches a side", times(n=3), times(n=3, first=1), 3, "3 and 3 launches"),
    Pair("no variance, no change", with_value(5.0), with_value(5.0, first=1), 0),
    Pair("no variance, 5 % slower", with_value(5.0), with_value(5.25, first=1), 1, "x1.05"),
    Pair("a time of zero", with_value(0.0), with_value(5.0, first=1), 3, "above zero"),
    Pair("a time of zero now", with_value(5.0), with_value(0.0, first=1), 3, "above zero"),
    Pair("NaN in one launch", with_value(5.0), [*with_value(5.0, 9, 1), *with_value(None, 1, 19)], 1, "NaN"),
    Pair("absent in one launch", with_value(5.0), [*with_value(5.0, 9, 1), *launches([{"load_ms": 9.0}], first=19)], 3),
    Pair("one launch interrupted", BASE_TIMES, changed(times(first=1), 3, complete=False), 3, "interrupted"),
    Pair("one side after the other", BASE_TIMES, times(first=100), 0, "in turns"),
    Pair(
        "a throttled clock",
        with_value(1000.0, name="tpu_clock_lowest_mhz"),
        with_value(750.0, first=1, name="tpu_clock_lowest_mhz"),
        3,
        "not asked the same",
    ),
    Pair(
        "another driver",
        BASE_TIMES,
        [replace(run, run=run.run | {"health": ()}) for run in times(first=1)],
        3,
        "health.driver",
    ),
    # Rules.
    Pair(
        "a bad case is ignored",
        GOOD,
        one(a_record(), failed(PREFILL)),
        0,
        rules=f'[[rule]]\nmetrics = ["*"]\ncases = "{PREFILL}"\ncompare = "ignored"',
    ),
    Pair(
        "a rule of no case",
        GOOD,
        GOOD,
        2,
        "fits none of the cases",
        rules='[[rule]]\nmetrics = ["outcome"]\ncases = "gone-*"\ncompare = "ignored"',
    ),
    Pair("rules that make no sense", GOOD, GOOD, 3, rules='[[rule]]\nmetrics = ["x"]\nratio = 0.9'),
    Pair("rules with a typing mistake", GOOD, GOOD, 3, rules='[[rules]]\nmetrics = ["x"]'),
    Pair(
        "all that holds is told",
        one(a_record(), a_record(PREFILL, outcome=EXPECTED)),
        one(failed(), a_record(PREFILL)),
        1,
        "also 2: stale",
    ),
]


def run_gate(monkeypatch, *args):
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "gate", *map(str, args)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


def write_side(folder, runs):
    """Write each run into a folder of its own."""
    folder.mkdir()
    for index, made in enumerate(runs):
        made.write(folder / f"{index:02}")


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_pair(pair, tmp_path, monkeypatch, capsys):
    """Exit code and words for a pair of sides."""
    monkeypatch.chdir(tmp_path)
    write_side(tmp_path / "base", pair.base)
    write_side(tmp_path / "new", pair.new)
    args = list(pair.args)
    if pair.rules:
        (tmp_path / "rules.toml").write_text(pair.rules)
        args += ["--rules", "rules.toml"]
    code = run_gate(monkeypatch, "base", "new", *args)
    said = capsys.readouterr().out
    assert code == pair.code, said
    assert pair.says in said


def test_the_table_is_long_enough():
    """At least forty pairs, each with a name of its own."""
    assert len(PAIRS) >= 40
    assert len({pair.name for pair in PAIRS}) == len(PAIRS)


def test_a_finding_tells_all(tmp_path, monkeypatch, capsys):
    """Case, check, metric, both values, limit, and a command that prints the records."""
    monkeypatch.chdir(tmp_path)
    write_side(tmp_path / "base", one(a_record()))
    write_side(
        tmp_path / "new", one(a_record(metrics={"kl_mean_nats": 1.4e-5}, predicted={"ddr_read_bytes": 1_500_001}))
    )
    assert run_gate(monkeypatch, "base", "new") == 1
    said = capsys.readouterr().out
    assert f"  {DECODE}  parity/from_zero_state  kl_mean_nats\n    7e-06 -> 1.4e-05, limit x1.25 and +1e-06\n" in said
    assert f"""$ grep -rF '"case":"{DECODE}","suite":"parity","check":"from_zero_state' base new\n""" in said
    assert f"$ rwkv-tpu profile {DECODE} --toolchain 1.30.2\n" in said
    pattern = said.partition("grep -rF '")[2].partition("'")[0]
    assert pattern in (tmp_path / "new" / "00" / "records.jsonl").read_text()


def test_a_prediction_is_told_once_a_case(tmp_path, monkeypatch, capsys):
    """It stands in the record of each check, but the case has one compile."""
    checks = "from_zero_state", "from_random_state"
    write_side(tmp_path / "base", one(*(a_record(check=check) for check in checks)))
    write_side(tmp_path / "new", one(*(a_record(check=check, predicted={"predicted_cycles": 1}) for check in checks)))
    assert run_gate(monkeypatch, tmp_path / "base", tmp_path / "new") == 0
    assert "IMPROVED: 1\n" in capsys.readouterr().out


def test_a_run_folder_and_a_file(tmp_path, monkeypatch):
    """A side is also a run's own folder, or its records file."""
    write_side(tmp_path / "base", one(a_record()))
    run = tmp_path / "base" / "00"
    assert run_gate(monkeypatch, run, run / "records.jsonl") == 0


def test_many_findings_are_cut_short(tmp_path, monkeypatch, capsys):
    """Twenty of a kind, unless all are asked for."""
    names = [f"prefill_{n}-F16-chunk" for n in range(30)]
    write_side(tmp_path / "base", one(*map(a_record, names)))
    write_side(tmp_path / "new", one(*map(failed, names)))
    assert run_gate(monkeypatch, tmp_path / "base", tmp_path / "new") == 1
    assert "and 10 more; --all shows them" in capsys.readouterr().out
    run_gate(monkeypatch, tmp_path / "base", tmp_path / "new", "--all")
    assert "prefill_29-F16-chunk" in capsys.readouterr().out


@pytest.mark.parametrize("args", [["base"], ["base", "new", "--rule", "x"], ["nowhere", "nowhere"], []])
def test_usage_is_no_stale_expectation(args, monkeypatch):
    """A mistake in usage ends with 3: nothing was compared."""
    assert run_gate(monkeypatch, *args) == 3
