"""The gate between two builds of somebody else's port: the port is what is compared, and its ids are keys as any."""

from pathlib import Path

import pytest

from harness.gate.compare import gate
from harness.gate.finding import Kind
from harness.gate.rules import load_rules
from harness.gate.text import report_words
from tests.gate_runs import PREDICTED, MadeRun, a_record, failed, in_memory

CASE = "prefill_16-F16-mine"
OPTIONS = {"device": "cmodel", "grid": "default", "onnx": "v1.onnx", "io": "map.toml"}
BASE = {
    "grid": {"name": "mine", "sha256": "of the ids"},
    "port": {"map_sha256": "m1", "files_sha256": "f1"},
    "options": OPTIONS,
}
NEW = BASE | {"port": {"map_sha256": "m1", "files_sha256": "f2"}, "options": OPTIONS | {"onnx": "v2.onnx"}}


def gated(new, about=NEW, allow=()):
    """What the gate finds between a good run of a build and one of another."""
    runs = MadeRun((a_record(CASE),), BASE), MadeRun((new,), about)
    sides = [in_memory(Path(name), [run]) for name, run in zip(("base", "new"), runs, strict=True)]
    return gate(*sides, load_rules(), allow=allow)


def test_the_same_numbers():
    """Another build whose numbers are the same passes, and is what was compared."""
    report = gated(a_record(CASE))
    assert report.exit_code == 0
    assert report.comparability.compared == "port"
    assert report.checks == 1


@pytest.mark.parametrize(
    ("new", "metric"),
    [
        (failed(CASE), "outcome"),
        (a_record(CASE, metrics={"kl_mean_nats": 1e-4}), "kl_mean_nats"),
        (a_record(CASE, predicted=PREDICTED | {"predicted_cycles": 99_999}), "predicted_cycles"),
    ],
)
def test_a_worse_build(new, metric):
    """It is a regression; the records of both are shown, for nothing could be compiled from its id."""
    report = gated(new)
    assert report.exit_code == 1
    assert metric in {one.metric for one in report.findings if one.kind is Kind.REGRESSION}
    words = report_words(report)
    assert f'$ grep -rF \'"case":"{CASE}"' in words
    assert "rwkv-tpu profile" not in words


def test_another_compiler_besides():
    """Then one of the two has to be named; another map's ids are another grid."""
    both = NEW | {"toolchain": {"version": "1.31.0", "identity": "i1"}}
    assert gated(a_record(CASE), both).exit_code == 3
    report = gated(a_record(CASE), both, allow=["toolchain"])
    assert (report.exit_code, report.comparability.compared) == (0, "port")
    assert gated(a_record(CASE), NEW | {"grid": {"name": "mine", "sha256": "other"}}).exit_code == 3
