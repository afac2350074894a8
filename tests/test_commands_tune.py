"""``rwkv-tpu tune`` with a made-up compiler, its judge on the fake libsophon, and all of it on the simulator."""

import shutil
import sys

import msgspec
import pytest

from compile.compiler import Bmodel, Compiled, CompileError, Stage
from compile.options import Option
from compile.profile import Profile
from compile.spec import Quantization
from compile.toolchain import RECEIPT
from harness.cases import parse_case
from harness.checkpoints import open_model
from harness.cli import main
from harness.device.board import locate_board
from harness.device.place import place_of
from harness.limits import load_limits
from harness.targets.bmodel import BmodelTarget
from harness.tune import Parity, ParityJudge
from harness.tuned import Tuned, keep_tuned, read_tuned
from reports import schema
from tests.a_receipt import a_receipt
from tests.device_trees import PCIE, write_tree
from tests.fake_libsophon.build import FakeModel, build_libraries, write_bmodel

RECEIPT_VALUE = a_receipt()
FINE = Parity(stage=None, message="", metrics={"kl_worst_nats": 1e-5, "state_nmse": 2e-6})
WRONG = Parity(stage=schema.Stage.LOAD, message="refused by the runtime", metrics={})


class FakeCompiler:
    """In place of compile_graph: the flags decide on the predicted time.

    Attributes:
        cycles: to subtract for a flag that stands there; None where that does not compile.
        works: whether anything compiles.
        jobs: what was asked for.
        limits: for each stage of each of them, in seconds.
    """

    def __init__(self, folder):
        self.folder = folder
        self.cycles = {}
        self.works = True
        self.jobs = []
        self.limits = []

    def __call__(self, job, cache, *, say, timeout_s):  # noqa: ARG002 - the arguments of compile_graph
        """Compile."""
        self.jobs.append(job)
        self.limits.append(timeout_s)
        cycles = [self.cycles[flag] for flag in job.flags if flag in self.cycles]
        if not self.works or None in cycles:
            raise CompileError(
                Stage.CODEGEN, job.spec.name, "killed by signal 6", rerun="cd x", log=self.folder / "log"
            )
        profile = Profile(
            predicted_cycles=50_000 - sum(cycles),
            tiu_instructions=700,
            gdma_instructions=300,
            ddr_read_bytes=1_000,
            ddr_write_bytes=200,
            ddr_copy_bytes=30,
            flops=1,
        )
        return Bmodel(
            self.folder,
            Compiled(
                key=job.key,
                bmodel_sha256="",
                bmodel_bytes=12_345,
                profile=profile,
                costs={},
                toolchain=job.toolchain.identity,
                f32_operations=(),
            ),
            cached=False,
        )


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A made-up compiler, a cache with a toolchain that has no tools, and a file of tuned cases of the test's own."""
    fake = FakeCompiler(tmp_path)
    monkeypatch.setattr("harness.tune.compile_graph", fake)
    monkeypatch.setattr("harness.commands.tune.keep_tuned", lambda found: keep_tuned(found, tmp_path / "tuned.toml"))
    monkeypatch.setenv("RWKV_TPU_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    root = tmp_path / "toolchains" / "1.30.2-0"
    root.mkdir(parents=True)
    (root / RECEIPT).write_bytes(msgspec.json.encode(RECEIPT_VALUE))
    return fake


@pytest.fixture
def verdicts(monkeypatch):
    """In place of runs on the simulator: a verdict by the id of a case; all others are fine."""
    by_id = {}
    monkeypatch.setattr(ParityJudge, "judge", lambda _, case: by_id.get(case.id, FINE))
    return by_id


@pytest.fixture
def rwkv_tpu(monkeypatch, capsys):
    """Run the command; its output, its errors."""

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "tune", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, errors = capsys.readouterr()
        assert (end.value.code or 0) == status, errors + out
        return out, errors

    return run


def rows(out):
    """Of the table: the options of each row, and all of it."""
    table = out.partition("predicted, no measurement")[2].partition("best: ")[0]
    return {line.split()[0]: line for line in table.splitlines() if line.strip() and line.startswith("  ")}


def test_the_best_is_found_and_kept(compiler, verdicts, rwkv_tpu, tmp_path):
    """The table is in the order of predicted time; what does not compile is told, and so is what is wrong."""
    compiler.cycles = {"--opt": 400, "--addr_mode": None, "--high_precision": 90}
    verdicts["decode-F16-chunk+high_precision+opt1"] = WRONG
    out, _ = rwkv_tpu("decode-F16-chunk", "--options", "io_tag,opt1,high_precision", "--record")
    table = rows(out)
    assert [name for name in table if name != "options"][:5] == [
        "high_precision+opt1", "opt1", "high_precision", "none", "io_tag",
    ]  # fmt: skip
    assert "failed: load" in table["high_precision+opt1"]
    assert table["opt1"].split()[1:] == ["0.049600", "1,230", "1,000", "12,345", "0", "compiled", "passed"]
    assert "opt1: kl_worst_nats 1.0e-05, state_nmse 2.0e-06" in out
    assert "passed" not in table["none"]
    assert "failed: codegen" in table["io_tag"]
    assert "io_tag: codegen of decode: killed by signal 6" in out
    assert "high_precision+opt1: refused by the runtime" in out
    assert "best: decode-F16-chunk+opt1, predicted 0.049600 ms" in out
    assert read_tuned(tmp_path / "tuned.toml") == (
        Tuned(
            case="decode-F16-chunk",
            size="L2-C128-V257",
            toolchain="1.30.2",
            options=(Option.OPT1,),
            predicted_cycles=49_600,
            judged_on="tiny",
        ),
    )


@pytest.mark.usefixtures("verdicts")
def test_nothing_is_better(compiler, rwkv_tpu, tmp_path):
    """Where every option costs, the case as it was is the best; without --record nothing is kept."""
    compiler.cycles = {"--opt": -1}
    out, _ = rwkv_tpu("decode-F16-chunk", "--options", "opt1")
    assert "best: decode-F16-chunk, predicted 0.050000 ms" in out
    assert not (tmp_path / "tuned.toml").exists()


def test_what_a_graph_has_anyway(compiler, rwkv_tpu, monkeypatch):
    """An option whose flags the graph gets without it is not tried, and that is said."""
    monkeypatch.setattr("harness.jobs.needed_flags", lambda *_: ("--opt", "1", "--quant_output"))
    out, _ = rwkv_tpu("decode-F16-chunk", "--options", "opt1,io_tag,quant_output", "--no-parity")
    assert "had anyway by a graph of this kind: opt1, quant_output" in out
    assert len(compiler.jobs) == 2


def test_a_flag_is_taken_away(compiler, rwkv_tpu):
    """Decode is tried without a flag that it gets anyway; for prefill, which has not got it, that changes nothing."""
    out, _ = rwkv_tpu("decode-F16-chunk", "--options", "topo_sort,float_output", "--no-parity")
    tried = [set(job.flags) for job in compiler.jobs]
    assert tried == [{"--disable_topo_sort", "--quant_output"}, {"--quant_output"}, {"--disable_topo_sort"}, set()]
    out, _ = rwkv_tpu("prefill_16-F16-chunk", "--options", "topo_sort,float_output", "--no-parity")
    assert "had anyway by a graph of this kind: topo_sort" in out
    assert [set(job.flags) for job in compiler.jobs[4:]] == [{"--opt", "1", "--quant_output"}, {"--opt", "1"}]
    rwkv_tpu("prefill_16-F16-chunk", "--options", "opt2", "--no-parity")
    assert set(compiler.jobs[-1].flags) == {"--quant_output"}


@pytest.mark.usefixtures("verdicts")
def test_the_time_limit(compiler, rwkv_tpu):
    """A stage has as long as was asked for, or an hour, and no longer than what is left of the budget."""
    rwkv_tpu("decode-F16-chunk", "--options", "opt1", "--budget", "600")
    assert compiler.limits == [3600.0, 3600.0]
    rwkv_tpu("decode-F16-chunk", "--options", "opt1", "--stage-timeout", "7")
    assert compiler.limits[2:] == [7.0, 7.0]
    rwkv_tpu("decode-F16-chunk", "--options", "opt1", "--budget", "2", "--stage-timeout", "5000")
    assert compiler.limits[4] == 5000.0
    assert 100 < compiler.limits[5] <= 120


def test_no_budget(compiler, rwkv_tpu):
    """With no time at all, the case itself is compiled, and no more; without parity nothing is run."""
    out, _ = rwkv_tpu("decode-F16-chunk", "--budget", "0", "--no-parity")
    assert len(compiler.jobs) == 1
    assert "best: decode-F16-chunk, " in out


def test_nothing_compiles(compiler, rwkv_tpu):
    """The status is 1, and what failed is told."""
    compiler.works = False
    out, _ = rwkv_tpu("decode-F16-chunk", "--options", "opt1", status=1)
    assert "nothing compiles" in out
    assert "none: codegen of decode: killed by signal 6" in out
    assert len(compiler.jobs) == 2


def test_nothing_passes(compiler, verdicts, rwkv_tpu):
    """Where each of the bmodels gives wrong numbers, the status is 1 too."""
    compiler.cycles = {"--opt": 7}
    verdicts |= {"decode-F16-chunk": WRONG, "decode-F16-chunk+opt1": WRONG}
    out, _ = rwkv_tpu("decode-F16-chunk", "--options", "opt1", status=1)
    assert "nothing passes parity" in out
    assert out.count("failed: load") == 2


def test_a_precision_without_caps(compiler, rwkv_tpu, monkeypatch):
    """Where nothing says what is right, that is told before anything is compiled; --no-parity goes without."""
    monkeypatch.setattr("harness.commands.tune.load_limits", lambda: ({}, ""))
    _, errors = rwkv_tpu("decode-BF16-chunk", "--options", "opt1", status=2)
    assert "has no caps for BF16" in " ".join(errors.replace("│", "").split())
    assert not compiler.jobs
    rwkv_tpu("decode-BF16-chunk", "--options", "opt1", "--no-parity")


@pytest.mark.usefixtures("compiler", "verdicts")
def test_a_large_checkpoint_is_judged_by_a_small_one(monkeypatch, rwkv_tpu):
    """What does not fit the simulator is judged by the default checkpoint with the same options, and that is said."""
    monkeypatch.setattr("harness.commands.tune.fits_simulator", lambda model: False)  # noqa: ARG005 - its signature
    out, _ = rwkv_tpu("decode-F16-chunk", "--options", "opt1")
    assert "is too large for the simulator; tiny is judged instead" in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["decode-F16-chunk+opt1"], 2, "name the case without options: decode-F16-chunk"),
        (["decode-F16"], 2, "no case 'decode-F16'"),
        ([""], 2, "no case ''"),
        (["prefill_0-F16-chunk"], 2, "decode takes 1, the others 2 to 4,096"),
        (["decode-F16-chunk", "--options", ","], 2, "no option ''"),
        (["decode-F16-chunk", "--stage-timeout", "-1"], 2, "--stage-timeout"),
        (["decode-F16-chunk", "--checkpoint", "nowhere.pth"], 1, "nowhere.pth: cannot be read"),
        (["decode-F16-chunk", "--options", "opt3"], 2, "no option 'opt3' of the compiler; there are f16_state"),
        (["decode-F16-chunk", "--size", "3B"], 2, "0.1B"),
        (["decode-F16-chunk", "--record", "--no-parity"], 2, "--record keeps what passed parity"),
        (["decode-F16-chunk", "--budget", "-1"], 2, "--budget"),
        (["decode-F16-chunk", "--toolchain", "9.9"], 1, "rwkv-tpu toolchain install 9.9"),
    ],
)
def test_mistakes(compiler, rwkv_tpu, arguments, status, message):
    """What cannot be met is said before anything is compiled."""
    _, errors = rwkv_tpu(*arguments, status=status)
    assert message in " ".join(errors.replace("│", "").split())
    assert not compiler.jobs


class FakeOracle:
    """What the fake net computes, as the reference."""

    def __init__(self, place, path):
        self.place, self.path = place, path

    def run(self, tokens, state=None):
        """Run it."""
        with self.place.open([self.path]) as engine:
            return BmodelTarget(engine, "decode").run(tokens, state)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler named cc")
@pytest.mark.parametrize(
    ("addr_mode", "right", "stage", "message"),
    [
        (0, True, None, ""),
        (2, True, None, ""),
        (0, False, schema.Stage.NUMERICS, "should be <="),
        (7, True, schema.Stage.LOAD, "unknown addressing mode 7"),
    ],
)
def test_the_judge(compiler, tmp_path, monkeypatch, addr_mode, right, stage, message):
    """Right numbers pass, wrong ones fail with the metric, and what the runtime refuses is a verdict, no crash."""
    monkeypatch.setattr("harness.device.lock.MACHINE_WIDE", tmp_path)
    libraries = build_libraries(tmp_path / "libraries")
    tree = write_tree(tmp_path / "root", PCIE, ["bm-sophon0"], libraries=False)
    place = place_of(locate_board(0, libraries, tree))
    good = write_bmodel(tmp_path / "good.bmodel", FakeModel(vocabulary=257).whole(name="decode"))
    write_bmodel(tmp_path / "model.bmodel", FakeModel(vocabulary=257, addr_mode=addr_mode).whole(name="decode"))
    toolchain = type("Toolchain", (), {"identity": "none", "version": "1.30.2"})()
    limits = load_limits()[0][Quantization.F16]
    judge = ParityJudge(open_model(None), toolchain, place, limits, say=lambda _: None)
    if right:
        monkeypatch.setattr("harness.tune.oracle_for", lambda *_: FakeOracle(place, good))
    parity = judge.judge(parse_case("decode-F16-chunk"))
    assert parity.stage is stage, parity.message
    assert message in parity.message
    assert ("kl_worst_nats" in parity.metrics) == (stage is not schema.Stage.LOAD)
    compiler.cycles = {"--opt": None}
    assert judge.judge(parse_case("decode-F16-chunk+opt1")).stage is schema.Stage.CODEGEN


@pytest.mark.long
@pytest.mark.toolchain
def test_on_the_simulator(toolchain, rwkv_tpu):
    """A real option compiles, runs and is right."""
    assert toolchain.version == "1.30.2"
    out, _ = rwkv_tpu("decode-F16-chunk", "--options", "opt1", "--budget", "5")
    assert "best: decode-F16-chunk" in out
    assert "kl_worst_nats" in out
