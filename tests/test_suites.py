"""The main job, run as a user runs it: on trained checkpoints it passes, on wrong graphs it fails."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from compile.toolchain import RECEIPT, Toolchain
from reports.schema import Outcome, Stage, read
from tests.a_receipt import a_receipt

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.toolchain, pytest.mark.usefixtures("toolchain")]


def run_suites(tmp_path, *arguments, plugins=()):
    """Run ``pytest suites/`` in a process of its own, from another directory; return its end and its records."""
    command = [sys.executable, "-m", "pytest", str(ROOT / "suites"), "--rootdir", str(ROOT), "-c"]
    command += [str(ROOT / "pyproject.toml"), "--runs", str(tmp_path / "runs"), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    if plugins:
        environment["PYTHONPATH"] = str(ROOT / "tests")
    for plugin in plugins:
        command += ["-p", plugin]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=1500
    )
    runs = list((tmp_path / "runs").glob("*/records.jsonl"))
    return done, read(runs[0]) if runs else None


@pytest.mark.parametrize(
    "chosen", [["-k", "exact_match or (zero and not prefill_all)"], pytest.param([], marks=pytest.mark.long)]
)
def test_trained_checkpoint_that_reverses(shared_data, tmp_path, chosen):
    """A trained model passes on the simulator, and its bmodel reverses digit strings without a mistake.

    The main job judges the trained model that ships by every suite; with this one that takes long.
    """
    checkpoint = shared_data / "reverse_l2_x070" / "reverse_x070_L2_D256_h64.pth"
    done, run = run_suites(tmp_path, "--checkpoint", str(checkpoint), "--grid", "smoke", *chosen)
    assert done.returncode == 0, done.stdout[-8000:]
    assert not run.interrupted
    assert {record.outcome for record in run.records} <= {Outcome.PASSED, Outcome.SKIPPED}
    tasks = [record for record in run.records if (record.suite, record.check) == ("task", "exact_match")]
    assert tasks
    assert all(record.metrics["exact_matches"] >= 10 for record in tasks)
    assert (tmp_path / "runs" / run.run.id / "index.html").is_file()
    assert (tmp_path / "runs" / run.run.id / "records.csv").is_file()


@pytest.mark.parametrize(
    "arguments", [["--grid", "smoke", "-k", "prefill_all and from_zero"], pytest.param([], marks=pytest.mark.long)]
)
def test_checkpoint_of_rwkv_cpp(shared_data, tmp_path, arguments):
    """A model of twelve layers in the ggmf container passes on the simulator; every suite of it takes long."""
    checkpoint = shared_data / "tiny_rwkv7_834k" / "tiny-rwkv-7v0-834K-FP32.bin"
    done, run = run_suites(tmp_path, "--checkpoint", str(checkpoint), *arguments)
    assert done.returncode == 0, done.stdout[-8000:]
    assert {record.outcome for record in run.records} <= {Outcome.PASSED, Outcome.SKIPPED}
    assert run.run.checkpoint["codec"] == "raw-bytes"


@pytest.mark.parametrize(("fault", "graph"), [("decay-off-5-percent", "prefill_all"), ("relu-dropped", "decode")])
def test_wrong_graphs_fail(tmp_path, fault, graph):
    """A graph with a fault compiles, runs, and fails parity with the caps that ship; `make detection` knows more."""
    arguments = ("--grid", "smoke", "--variant", fault, "-k", f"parity and {graph} and from")
    done, run = run_suites(tmp_path, *arguments, plugins=["faulty_variants"])
    assert done.returncode == 1, done.stdout[-8000:]
    assert len(run.records) == 2
    for record in run.records:
        assert record.outcome is Outcome.FAILED, record
        assert record.stage is Stage.NUMERICS
        assert "should be <=" in record.message


@pytest.mark.long
def test_options_of_the_compiler(tmp_path):
    """What is asked for stands in the ids; a bmodel that the runtime refuses fails at the stage load, and is told."""
    arguments = ("--grid", "smoke", "--options", "in_reuse", "-k", "parity and decode and zero")
    done, run = run_suites(tmp_path, *arguments)
    assert done.returncode == 1, done.stdout[-8000:]
    (record,) = run.records
    assert record.case == "decode-F16-chunk+in_reuse"
    assert (record.outcome, record.stage) == (Outcome.FAILED, Stage.LOAD)
    assert "unknown addressing mode" in record.message


def test_a_stage_that_takes_too_long(tmp_path, monkeypatch):
    """A stage over the limit that was asked for is a failure recorded at that stage; a wrong limit is refused."""
    cache = tmp_path / "cache"
    found = Toolchain(cache / "toolchains" / "1.30.2-0", a_receipt())
    tools = found.package / "python" / "tools"
    tools.mkdir(parents=True)
    found.python.parent.mkdir()
    found.python.symlink_to(sys.executable)
    (tools / "model_transform.py").write_text("import time; time.sleep(600)")
    (found.root / RECEIPT).write_bytes(msgspec.json.encode(found.receipt))
    monkeypatch.setenv("RWKV_TPU_CACHE", str(cache))
    arguments = ("--grid", "smoke", "-k", "parity and decode and zero", "--stage-timeout")
    done, run = run_suites(tmp_path, *arguments, "10")  # the export of a toy takes a second or two of it
    assert done.returncode == 1, done.stdout[-8000:]
    (record,) = run.records
    assert (record.outcome, record.stage) == (Outcome.FAILED, Stage.TRANSFORM)
    assert "was stopped at its time limit after 10 s" in record.message
    done, _ = run_suites(tmp_path, *arguments, "0")
    assert done.returncode == 4
    assert "'0': should be seconds, 1 to 604,800" in done.stderr


def test_throughput(tmp_path):
    """Every sample is kept beside the records; on the simulator no figure passes for one of a chip."""
    done, run = run_suites(tmp_path, "--grid", "smoke", "-k", "throughput", "--depths", "0,17", "--repeats", "1")
    assert done.returncode == 0, done.stdout[-8000:]
    metrics = {record.case: record.metrics for record in run.records}
    assert metrics["decode-F16-chunk"]["simulator_wall_decode_tokens_per_s_at_17"] > 0
    assert metrics["prefill_16-F16-chunk"]["simulator_wall_ttft_ms"] > 0
    assert {name for of_case in metrics.values() for name in of_case if not name.startswith("simulator_")} == {
        "prompt_tokens"
    }
    folder = tmp_path / "runs" / run.run.id
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [sample["what"] for sample in samples if sample["case"] == "decode-F16-chunk"] == [
        "first-call",
        *4 * ["step"],
    ]
    assert {(sample["simulated"], sample["device_s"]) for sample in samples} == {(True, None)}
    assert "simulator_wall_decode_ms_at_17" in (folder / "records.csv").read_text()
    assert "no performance figures of the chip either" in (folder / "index.html").read_text()


def test_a_run_that_stops_early(tmp_path):
    """Stopped at the first failure, a run is interrupted: it does not pass for one that measured everything."""
    arguments = ("--grid", "smoke", "--variant", "relu-dropped", "-k", "parity and decode", "-x")
    done, run = run_suites(tmp_path, *arguments, plugins=["faulty_variants"])
    assert done.returncode == 1, done.stdout[-8000:]
    assert run.interrupted
    assert len(run.records) == 1
    assert "<h1>Interrupted</h1>" in (tmp_path / "runs" / run.run.id / "index.html").read_text()


def test_a_checkpoint_that_is_none(tmp_path):
    """A wrong file is an error before anything is compiled, with exit code 4 and no records."""
    (tmp_path / "m.pth").write_bytes(b"not a checkpoint")
    done, run = run_suites(tmp_path, "--checkpoint", "m.pth")
    assert done.returncode == 4
    assert "m.pth: begins as no checkpoint does" in done.stderr
    assert run is None


def test_a_board_that_is_none(tmp_path):
    """Without the board asked for, the error says what was looked for."""
    done, _ = run_suites(tmp_path, "--device", "7")
    assert done.returncode == 4
    assert "no board 7" in done.stderr
    assert "/dev/bm-sophon7" in done.stderr
    assert "libbmrt.so" in done.stderr


REFUSED = [
    (("--device", "tpu"), "should be 'cmodel' or the number of a board"),
    (("--grid", "huge"), "no grid 'huge'"),
    (("--toolchain", "9.9.9"), "rwkv-tpu toolchain install 9.9.9"),
    (("--variant", "linear"), "no graph variant 'linear'"),
    (("--options", "opt3"), "no option 'opt3' of the compiler"),
    (("--options", "io_alone,io_tag"), "addressed in one way only"),
    (("--codec", "world"), "world"),
    (("--depths", "0;512"), "such as 0,512"),
    (("--repeats", "0"), "at least 1"),
]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What pytest says to options that cannot be met, by the options: two at a time, as each takes long to start."""
    with ThreadPoolExecutor(2) as pool:
        asked = {given: pool.submit(run_suites, tmp_path_factory.mktemp("refused"), *given) for given, _ in REFUSED}
        return {given: one.result()[0] for given, one in asked.items()}


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_options_that_cannot_be_met(refusals, arguments, message):
    """Each is an error at once, that names the option's value and what would do."""
    assert refusals[arguments].returncode == 4
    assert message in refusals[arguments].stderr


def test_help_and_header(toolchain, tmp_path):
    """Help needs nothing; the header tells target, toolchain, checkpoint and grid."""
    done, _ = run_suites(tmp_path, "--help")
    assert done.returncode == 0
    assert "--device=cmodel|N" in done.stdout
    done, run = run_suites(tmp_path, "--collect-only")
    assert done.returncode == 0
    assert run is None
    for word in (
        "target: BM1684X simulator",
        f"TPU-MLIR {toolchain.compiler_commit}",
        "checkpoint: tiny",
        "grid: default",
    ):
        assert word in done.stdout
