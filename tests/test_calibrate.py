"""Calibration: what good runs teach the caps' file, and what it refuses."""

import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.spec import Quantization
from harness.calibrate import CalibrationError, good_run, lines, recalibrated, rounded_up
from harness.cli import main
from harness.limits import LIMITS, load_limits
from tests.gate_runs import DECODE, MadeRun, a_record, failed

TEXT = LIMITS.read_text()
CAPS = load_limits()[0]


def run(tmp_path, name="r", **metrics):
    """A good run of two checks, the second with *metrics*."""
    records = (a_record(metrics={"kl_mean_nats": 1e-6}), a_record(check="other", metrics=metrics))
    MadeRun(records, {"id": name}).write(tmp_path / name)
    return tmp_path / name


def test_the_worst_of_several_runs(tmp_path):
    """With its case, check and run; other precisions, and what is of no graph, are passed over."""
    paths = [run(tmp_path, "a", kl_mean_nats=2e-4), run(tmp_path, "b", kl_mean_nats=3e-4)]
    (line,) = [one for one in lines(map(good_run, paths), CAPS) if one.metric == "kl_mean_nats"]
    assert (line.quantization, line.found.value, line.before) == (Quantization.F16, 3e-4, 9e-5)
    assert line.found.where == f"{DECODE} parity/other, tiny, b"


def test_values_are_only_raised(tmp_path):
    """A lower value changes nothing, a higher one is written, rounded up, and every other character stays."""
    low = lines([good_run(run(tmp_path, "low", kl_worst_nats=1e-4, state_nmse=1e-6))], CAPS)
    assert recalibrated(TEXT, low, replace=False) == TEXT
    high = lines([good_run(run(tmp_path, "high", kl_worst_nats=6.11e-3))], CAPS)
    after = recalibrated(TEXT, high, replace=False)
    changed = [pair for pair in zip(TEXT.splitlines(), after.splitlines(), strict=True) if pair[0] != pair[1]]
    assert changed == [("kl_worst_nats = 5.1e-3", "kl_worst_nats = 6.2e-03")]


def test_caps_above_three_times(tmp_path):
    """Where these runs are all that there is, a cap that they do not allow is refused, and told."""
    low = lines([good_run(run(tmp_path, "low", kl_mean_nats=3e-5))], CAPS)
    with pytest.raises(CalibrationError, match=r"nothing is written:\n.*\[F16\] kl_mean_nats = 0.0001.*<= 9e-05"):
        recalibrated(TEXT, low, replace=True)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (MadeRun((a_record(),), complete=False), "was interrupted: pytest suites/ --resume"),
        (MadeRun((a_record(), failed(check="bad"))), f"1 checks did not pass, such as {DECODE} parity bad"),
    ],
)
def test_runs_that_are_not_good(tmp_path, made, says):
    """Nothing is learnt from them."""
    made.write(tmp_path / "r")
    with pytest.raises(CalibrationError, match=says):
        good_run(tmp_path / "r")


@given(st.floats(1e-12, 1e6))
def test_rounding_goes_up(value):
    """By less than a tenth, and the same again."""
    up = rounded_up(value)
    assert value * (1 - 1e-9) <= up <= value * 1.101
    assert rounded_up(up) == up


def test_the_command(tmp_path, monkeypatch, capsys):
    """It shows the table and the difference, and writes only where it is asked to."""
    file = tmp_path / "limits.toml"
    file.write_text(TEXT)
    good = run(tmp_path, "r", kl_worst_nats=6.11e-3)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "calibrate", str(good), "--limits", str(file), *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, capsys.readouterr()

    code, said = command()
    assert code == 0
    assert "+kl_worst_nats = 6.2e-03" in said.out
    assert file.read_text() == TEXT
    assert command("--write")[0] == 0
    assert msgspec.toml.decode(file.read_text())["F16"]["worst_good"]["kl_worst_nats"] == 6.2e-3
    code, said = command("--replace", "--write")
    assert code == 1
    assert "nothing is written" in said.err
