"""The soak of sizes and precisions: one block counts for all, rows outlive a run, the page says what is predicted."""

import sys
from dataclasses import dataclass

import msgspec
import pytest

from compile.compiler import Bmodel, Compiled, CompileError, Stage, StageCost
from compile.device_memory import DeviceMemory
from harness import soak as module
from harness.cases import parse_case
from harness.cli import main
from harness.sizes import BY_BLOCK
from harness.soak import BOARD_BYTES, SYSTEM_BYTES, Road, Row, fits_whole, keep, read_rows, soak
from harness.soak_report import to_markdown
from reference.shape import LoraRanks, ModelShape
from tests.fake_codegen import a_profile

SHAPE = ModelShape(
    n_layer=5, n_embd=128, head_size=64, n_ffn=256, n_vocab=50, ranks=LoraRanks(decay=8, rate=8, value=8, gate=8)
)
CASE = parse_case("prefill_16-F16-chunk")


@dataclass
class _Toolchain:
    version: str = "1.2.3"
    identity: str = "fake"


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Have compiles succeed at once; what a part takes depends on its kind alone. The names of what was compiled."""
    monkeypatch.setitem(BY_BLOCK, "tiny", SHAPE)
    names = []
    sizes = {"embed": 10, "block_0": 100, "head": 1000}

    def compile_all(jobs, *_, **__):
        names.extend(job.spec.name for job in jobs)
        return [_bmodel(tmp_path / job.spec.name, sizes.get(job.spec.name.rpartition("_")[0], 10_000)) for job in jobs]

    def device_memory(path, _):
        size = int(path.read_text())
        return DeviceMemory(coefficients=size, instructions=2 * size, runtime=3 * size)

    monkeypatch.setattr(module, "compile_all", compile_all)
    monkeypatch.setattr(module, "device_memory", device_memory)
    return names


def _bmodel(folder, size):
    folder.mkdir(exist_ok=True)
    (folder / "model.bmodel").write_text(str(size))
    profile = a_profile(predicted_cycles=size * 1000)
    costs = {"transform": StageCost(seconds=float(size), peak_bytes=size)}
    about = {"key": "k", "bmodel_sha256": "s", "toolchain": "t", "f32_operations": ()}
    return Bmodel(folder, Compiled(**about, bmodel_bytes=size, profile=profile, costs=costs), cached=False)


def run(road, case=CASE):
    """Soak one point of the tiny size."""
    options = {"workers": 1, "memory_bytes": 1 << 30, "timeout_s": 1.0, "say": lambda _: None}
    (row,) = soak([("tiny", case)], _Toolchain(), road, **options)
    return row


def test_one_block_counts_for_the_others(compiled):
    """Of one block, every figure but the seconds is that of all blocks, where these are alike; it says what it did."""
    one = run(Road.ONE_BLOCK)
    assert compiled == ["embed_16", "block_0_16", "block_2_16", "head_16"]
    every = run(Road.BLOCKS)
    assert (one.compiled, one.parts, every.compiled, every.parts) == (4, 7, 7, 7)
    assert one.seconds < every.seconds == 41_110
    same = msgspec.structs.replace(one, road=every.road, compiled=every.compiled, seconds=every.seconds)
    assert same == every
    assert every.coefficient_bytes == 41_110
    assert every.runtime_bytes == 30_000
    assert every.predicted_ms == pytest.approx(41.11)
    assert every.tokens_per_s == pytest.approx(16 / 0.04111)
    assert every.state_bytes == 4 * 5 * (2 * 128 + 2 * 64 * 64)


def test_a_failure_is_a_row(compiled, monkeypatch):
    """What does not compile is told with its stage, and nothing else is claimed."""

    def fails(*_, **__):
        raise CompileError(Stage.LOWER, "block_2_16 F16", "died of SIGSEGV")

    monkeypatch.setattr(module, "compile_all", fails)
    row = run(Road.BLOCKS)
    assert row.error == "lower of block_2_16 F16: died of SIGSEGV"
    assert row.predicted_ms == row.coefficient_bytes == 0
    assert not compiled
    assert row.error in to_markdown([row])


def test_which_road(compiled):
    """A whole graph where its compile fits into the memory, parts where it does not."""
    assert fits_whole("0.1B", 12 << 30)
    assert not fits_whole("0.1B", 4 << 30)
    assert not fits_whole("2.9B", 24 << 30)
    assert fits_whole("tiny", 1 << 30)
    assert run(None).road == "whole"
    assert compiled == ["prefill_16"]


def row(**changes):
    """Return a row that compiled, with changes."""
    usual = {"size": "2.9B", "case": "decode-F16-chunk", "release": "1.2.3", "road": "blocks", "predicted_ms": 50.0}
    return msgspec.convert(usual | changes, type=Row)


def test_rows_outlive_a_run(tmp_path):
    """A later row of the same point takes the place of the earlier one; the others stay, in the order of the grid."""
    path = tmp_path / "folder" / "t.json"
    assert read_rows(path) == ()
    first = [row(size="7.2B"), row(case="prefill_64-F16-chunk"), row()]
    keep(first, path)
    every = keep([row(predicted_ms=40.0), row(size="0.4B", case="decode-W4F16-chunk")], path)
    assert read_rows(path) == every
    assert [(one.size, one.case) for one in every] == [
        ("0.4B", "decode-W4F16-chunk"),
        ("2.9B", "decode-F16-chunk"),
        ("2.9B", "prefill_64-F16-chunk"),
        ("7.2B", "decode-F16-chunk"),
    ]
    assert every[1].predicted_ms == 40.0


def test_what_fits_a_board():
    """All that a graph takes with one sequence, both of its states, against the board less the system; to the byte."""
    free = BOARD_BYTES - SYSTEM_BYTES
    just = {"coefficient_bytes": free - 60, "instruction_bytes": 10, "runtime_bytes": 20, "state_bytes": 15}
    assert row(**just).device_bytes == free
    assert row(**just).fits == "yes"
    assert row(**just | {"runtime_bytes": 21}).fits.startswith("no: more than 16 GiB")
    assert row(largest_net_bytes=1 << 32).fits.startswith("no: one net's coefficients")
    assert row(largest_net_bytes=(1 << 32) - 1).fits == "yes"


def test_page():
    """The page has a line for each row, and says what is predicted, and what was multiplied."""
    page = to_markdown([row(road="one block", compiled=4, parts=34), row(case="decode-W4F16-chunk")])
    assert "one block, 4 of 34 graphs" in page
    assert "nothing here was measured on a board" in page
    assert "| 50.00 | 20.0 |" in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sizes", "3B"], "'3B'"),
        (["--precisions", ""], "empty"),
        (["--graphs", "prefil_64"], "'prefil_64' is none of decode"),
        (["--one-block", "--whole"], "part by part"),
    ],
)
def test_mistyped(monkeypatch, capsys, arguments, words):
    """What there is not is named before anything is compiled."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "soak-compile", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert words in capsys.readouterr().err
