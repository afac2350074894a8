"""``rwkv-tpu bench-compile``: its rows, its rule of 1 %, its tables and exit codes; the compiler's tools are fakes."""

import argparse
import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.graphs.block import Rwkv7Block
from compile.profile import Profile
from compile.storage import Matrices, Storage
from compile.toolchain import RECEIPT, Toolchain
from harness.bench_compile import Result, Verdict, bench_compile, judge, loop_row, passed
from harness.bench_report import cells, narrow_cells, narrow_storage_cells
from harness.cli import main
from harness.commands.bench_compile import _print
from harness.compile_rows import Row, RowsError, read_rows, record, write_rows
from harness.sizes import BY_BLOCK, SIZES
from harness.stage_timeout import parse_stage_timeout
from harness.training.recipe import SMALL
from reference.shape import LoraRanks, ModelShape
from tests.a_receipt import a_receipt

SHAPE = ModelShape(
    n_layer=3, n_embd=128, head_size=64, n_ffn=128, n_vocab=320, ranks=LoraRanks(decay=8, rate=8, value=8, gate=8)
)

TRANSFORM = """
import os, sys, time, onnx
if os.path.exists(os.path.join(os.path.dirname(sys.argv[0]), "hang")):
    time.sleep(600)
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
nodes = onnx.load(options["--model_def"]).graph.node
open(options["--mlir"], "w").write("".join(f'loc("{n.output[0]}_{n.op_type}")\\n' for n in nodes))
"""
DEPLOY = """
import json, os, re, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
mlir = open(options["--mlir"]).read()
layers = set(re.findall(r"blocks\\.(\\d+)\\.att", mlir))
kind = f"{len(layers)} {options['--quantize']}" + (" loop" if "embedded_Layer" in mlir else "")
cycles = json.load(open(os.path.join(os.path.dirname(sys.argv[0]), "cycles.json"))).get(kind)
print("cycles of", kind, cycles)
if cycles is None:
    sys.exit(3)
open(options["--model"], "wb").write(b"bmodel")
open("compiler_profile_0.txt", "w").write(
    f"API_END total_cycle:{cycles}|b:2|g:3\\n"
    "GDMA SUMMARY : |dr[0] S2L:10|dr[1] L2S:20|dr[2] S2S:30|dr[3] L2L:0\\n"
    "flops: 7, runtime: 0.001ms, ComputationAbility: 1T\\n"
)
open("net_final.mlir", "w").write('''
    %1 = "top.Weight"() {path = "a"} : () -> tensor<1x64x8xf16, 1 : i64> loc(#loc1)
    %2 = "tpu.MatMul"(%0, %1) {n = 1} : (tensor<1x1x64xf16>, tensor<1x64x8xf16>) -> tensor<1x1x8xf32> loc(#loc2)
''')
"""


@pytest.fixture
def cycles(tmp_path, monkeypatch):
    """A cache with a toolchain that predicts what is put in here, and fails where nothing is; two tiny sizes."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("RWKV_TPU_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setitem(SIZES, "tiny", SMALL)
    monkeypatch.setitem(BY_BLOCK, "huge", SHAPE)
    receipt = a_receipt()
    toolchain = Toolchain(cache / "toolchains" / "1.30.2-0", receipt)
    tools = toolchain.package / "python" / "tools"
    tools.mkdir(parents=True)
    toolchain.python.parent.mkdir()
    toolchain.python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')  # so that it finds this environment's onnx
    toolchain.python.chmod(0o755)
    (toolchain.root / RECEIPT).write_bytes(msgspec.json.encode(receipt))
    (tools / "model_transform.py").write_text(TRANSFORM)
    (tools / "model_deploy.py").write_text(DEPLOY)

    def put(**values):
        found = {name.replace("_", " ").removeprefix("n"): value for name, value in values.items()}
        (tools / "cycles.json").write_text(json.dumps(found))
        shutil.rmtree(cache / "bmodels", ignore_errors=True)

    put(n2_F16=2_000_000, n2_W4F16=1_000_000, n1_F16=500_000)
    return put


ROWS = (
    Row(case="decode-F16-chunk", size="tiny", target_ms=2.0, loop_ms=7.5, first_ms=6.0, prototype_ms=5.0),
    Row(case="decode-W4F16-chunk", size="tiny", target_ms=0.5),
    Row(case="decode-F16-chunk", size="huge", block=2, target_ms=1.0, best={"1.30.2": 500_000, "1.28.1": 7}),
)


@pytest.fixture
def rows(tmp_path, cycles):  # noqa: ARG001 - the sizes of the rows
    """A file of three rows."""
    path = tmp_path / "rows.toml"
    write_rows(ROWS, path)
    return path


@pytest.fixture
def bench(monkeypatch, capsys, rows, tmp_path):
    """Run the command; its status, its output, its errors."""

    def run(*arguments):
        arguments = ["bench-compile", "--rows", rows, "--out", tmp_path / "docs", *arguments]
        monkeypatch.setattr(sys, "argv", ["rwkv-tpu", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


def test_the_table(bench, tmp_path):
    """Every row with its figures, on the terminal, in JSON and in Markdown; a missed target is no failure."""
    status, out, errors = bench()
    assert status == 0, errors
    assert "no measurement" in out
    assert "[1/3] tiny decode-F16-chunk: 2.0000 ms predicted, target 2.00 met" in out
    assert "[2/3] tiny decode-W4F16-chunk: 1.0000 ms predicted, target 0.50 missed" in out
    assert "5.00*" in out
    assert "7.50*" in out
    found = json.loads((tmp_path / "docs" / "performance-rows.json").read_text())
    whole, four, block = found["rows"]
    assert [row["predicted_cycles"] for row in found["rows"]] == [2_000_000, 1_000_000, 500_000]
    assert [row["met"] for row in found["rows"]] == [True, False, True]
    assert whole["share_of_floor"] == whole["floor_ns"] / 2_000_000
    assert (whole["verdict"], block["verdict"], block["change"]) == ("no best yet", "within 1 %", 0.0)
    assert four["storage"]["matrices"] == [{"bits": 16, "count": 1, "bytes": 1024, "names": []}]
    assert found["release"] == "1.30.2"
    markdown = (tmp_path / "docs" / "performance-rows.md").read_text()
    assert "| huge block 2 decode-F16-chunk | 1.00 | 0.5000 | met |" in markdown
    assert "| tiny decode-W4F16-chunk | none | 1 of 16 bits | 1,024 (100.0%) | 1 of 1 |" in markdown
    assert "nothing here was measured" in markdown
    assert "does not compile" not in markdown


def test_again(bench, tmp_path):
    """What is in the cache is not compiled again, and equal compiles give equal files."""
    bench()
    files = [tmp_path / "docs" / f"performance-rows.{kind}" for kind in ("json", "md")]
    before = [file.read_bytes() for file in files]
    status, out, _ = bench()
    assert status == 0
    assert "transform" not in out
    assert [file.read_bytes() for file in files] == before


def test_killed_in_the_middle(bench, monkeypatch):
    """Rows that were done before the kill are found; only the others are compiled."""

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("harness.bench_compile.synthetic_block", kill)
        assert bench()[0] == 130
    _, out, _ = bench()
    assert len(re.findall("transform …", out)) == 1


@pytest.mark.parametrize(("reached", "status"), [(505_000, 0), (505_001, 1), (499_999, 0)])
def test_slower_than_the_best(bench, cycles, reached, status, tmp_path):
    """By 1 % is allowed, by a cycle more is a failure; the tables are written all the same."""
    cycles(n2_F16=1, n2_W4F16=1, n1_F16=reached)
    code, out, _ = bench()
    assert code == status
    assert f"{reached / 500_000 - 1:+.2%}" in out
    assert (tmp_path / "docs" / "performance-rows.md").exists()


def test_does_not_compile(bench, cycles, rows, tmp_path):
    """A failure, shown with its reason; the rows after it are compiled, and no best is made of it."""
    cycles(n2_F16=1, n1_F16=499_000)
    status, out, _ = bench("--record")
    assert status == 1
    assert "cycles of 2 W4F16 None" in out
    assert "[3/3] huge block 2 decode-F16-chunk: 0.4990 ms" in out
    (row,) = [
        row for row in json.loads((tmp_path / "docs" / "performance-rows.json").read_text())["rows"] if row["error"]
    ]
    assert (row["case"], row["predicted_cycles"], row["verdict"]) == ("decode-W4F16-chunk", None, "does not compile")
    assert "## What does not compile" in (tmp_path / "docs" / "performance-rows.md").read_text()
    assert [one.best.get("1.30.2") for one in read_rows(rows)] == [1, None, 499_000]


def test_record(bench, cycles, rows):
    """The best is kept by release and gets only better; rows that were left out keep theirs."""
    bench("--record", "--only", "tiny")
    assert [row.best for row in read_rows(rows)] == [{"1.30.2": 2_000_000}, {"1.30.2": 1_000_000}, ROWS[2].best]
    cycles(n2_F16=2_010_000, n2_W4F16=900_000, n1_F16=400_000)
    status, out, _ = bench("--record")
    assert status == 0
    assert "2 new best in" in out
    assert [row.best["1.30.2"] for row in read_rows(rows)] == [2_000_000, 900_000, 400_000]
    assert read_rows(rows)[2].best["1.28.1"] == 7


def test_only(bench, tmp_path, monkeypatch, capsys, rows):
    """A part of a name, or a pattern, chooses; the documents are of all rows, so a part is written only where asked."""
    status, out, _ = bench("--only", "huge*F16")
    assert status == 0
    assert "[1/1] huge block 2" in out
    monkeypatch.setattr("harness.commands.bench_compile.DOCS", tmp_path / "real")
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "bench-compile", "--rows", str(rows), "--only", "huge"])
    with pytest.raises(SystemExit):
        main()
    assert not (tmp_path / "real").exists()
    capsys.readouterr()
    status, _, errors = bench("--only", "W8")
    assert status == 2
    assert "no row has 'W8'" in errors


def test_loop(bench, cycles, tmp_path):
    """The loop is compiled for decode graphs of whole models; one that fails is said and fails nothing."""
    cycles(n2_F16=2, n2_W4F16=1, n1_F16=500_000, n2_F16_loop=3_000_000)
    status, out, _ = bench("--loop")
    assert status == 0
    assert "tiny decode-F16-loop: 3.0000 ms predicted" in out
    assert "tiny decode-W4F16-loop: lower of decode W4F16" in out
    loops = [
        row["loop_predicted_cycles"]
        for row in json.loads((tmp_path / "docs" / "performance-rows.json").read_text())["rows"]
    ]
    assert loops == [3_000_000, None, None]


def test_the_ratio(bench, cycles, tmp_path):
    """The loop beside a row shows how many times longer it takes; an earlier loop's ratio is marked as that."""
    cycles(n2_F16=2_000_000, n2_W4F16=1, n1_F16=500_000)
    _, out, _ = bench("--only", "tiny*F16")
    assert "3.75*" in out
    cycles(n2_F16=2_000_000, n2_W4F16=1, n1_F16=500_000, n2_F16_loop=3_000_000)
    _, out, _ = bench("--loop")
    assert re.search(r"met +\S+% +1\.50 ", out)
    found = json.loads((tmp_path / "docs" / "performance-rows.json").read_text())["rows"]
    assert [row["times_faster_than_loop"] for row in found] == [1.5, None, None]


def test_a_stage_that_takes_too_long(bench, rows, tmp_path):
    """It is stopped at the limit that was asked for; the row says which stage it was, and the status is 1."""
    (tmp_path / "cache" / "toolchains" / "1.30.2-0").joinpath(
        "lib/python3.10/site-packages/tpu_mlir/python/tools/hang"
    ).touch()
    status, out, _ = bench("--only", "huge", "--stage-timeout", "1")
    assert status == 1
    (row,) = json.loads((tmp_path / "docs" / "performance-rows.json").read_text())["rows"]
    assert re.match(r"transform of decode F16 \[\w+\]: was stopped at its time limit after 1 s", row["error"])
    assert row["verdict"] == "does not compile"
    assert "does not" in out
    assert read_rows(rows) == ROWS


def test_a_graph_that_refuses(cycles, monkeypatch, tmp_path):
    """A graph that cannot be written is a row that does not compile; the rows after it are compiled."""

    def refuse(*_, **__):
        raise ValueError("T is 1, but should be a multiple of 16")

    monkeypatch.setattr("harness.bench_compile.Rwkv7Block", type("Refuses", (Rwkv7Block,), {"__init__": refuse}))
    cycles(n2_F16=1)
    toolchain = Toolchain(tmp_path / "cache" / "toolchains" / "1.30.2-0", a_receipt())
    refused, fine = bench_compile([ROWS[2], ROWS[0]], toolchain)
    assert "export of decode F16" in refused.error
    assert "but should be a multiple of 16" in refused.error
    assert fine.cycles == 1
    assert not (tmp_path / "cache" / "failed").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--rows", "nowhere.toml"], 1, "nowhere.toml: "),
        (["--stage-timeout", "0"], 2, "--stage-timeout"),
        (["--stage-timeout", "nan"], 2, "--stage-timeout"),
        (["--stage-timeout", "1e9"], 2, "--stage-timeout"),
        (["--stage-timeout", "soon"], 2, "--stage-timeout"),
        (["--out", __file__], 2, "--out"),
        (["--only", "["], 2, "no row has '['"),
        (["--toolchain", "9.9"], 1, "rwkv-tpu toolchain install 9.9"),
    ],
)
def test_what_cannot_be_met(bench, arguments, status, message):
    """It is said in a sentence, before anything is compiled."""
    found, out, errors = bench(*arguments)
    assert found == status
    assert message in " ".join(errors.replace("│", "").split())
    assert "Traceback" not in errors
    assert "[1/" not in out


@given(st.text(max_size=8) | st.floats().map(str) | st.integers().map(str))
def test_limits(text):
    """Whatever is typed as a time limit is seconds from one to a week, or is refused in words."""
    try:
        assert 1 <= parse_stage_timeout(text) == float(text) <= 7 * 24 * 3600
    except argparse.ArgumentTypeError as error:
        assert "should be seconds, 1 to 604,800" in str(error)  # noqa: PT017 - both ways out are right


CYCLES = st.integers(10**6, 10**10)
RESULTS = st.builds(
    Result,
    row=st.builds(
        Row,
        case=st.sampled_from(["decode-F16-chunk", "prefill_all_4096-W4F16-chunk", "decode-W4F16-chunk+no_topo_sort"]),
        size=st.sampled_from(["0.1B", "2.9B"]),
        block=st.none() | st.integers(10, 31),
        target_ms=st.floats(0.1, 1e4),
        loop_ms=st.none() | st.floats(0.1, 1e4),
        first_ms=st.none() | st.floats(0.1, 1e4),
        prototype_ms=st.none() | st.floats(0.1, 1e4),
        best=st.just({}) | st.fixed_dictionaries({"1": st.integers(10**6, 10**9)}),
    ),
    release=st.just("1"),
    profile=st.none()
    | st.builds(
        Profile,
        predicted_cycles=CYCLES,
        **dict.fromkeys(("tiu_instructions", "gdma_instructions", "flops"), st.just(1)),
        **dict.fromkeys(("ddr_read_bytes", "ddr_write_bytes", "ddr_copy_bytes"), st.just(1)),
    ),
    storage=st.none()
    | st.builds(
        Storage,
        matrices=st.lists(
            st.builds(
                Matrices, bits=st.sampled_from([4, 8, 16, 32]), count=st.integers(1, 999), bytes=st.integers(1, 10**9)
            ),
            max_size=4,
            unique_by=lambda one: one.bits,
        ).map(tuple),
        operations=st.integers(1, 99_999),
        f32_operations=st.integers(1, 99_999),
    ),
    floor_ns=st.none() | st.floats(1e5, 1e10),
    loop_cycles=st.none() | CYCLES,
)


@settings(max_examples=20)
@given(st.lists(RESULTS, min_size=1, max_size=3))
def test_eighty_columns(results):
    """On a terminal of 80 columns no line is longer, and every figure of every row is there in one piece."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        _print(results, "title")
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    words = set(shown.getvalue().split())
    for result in results:
        figures = [*narrow_cells(result)[1:], *(narrow_storage_cells(result) or [""])[1:]]
        assert set(" ".join(figures).split()) <= words
        assert all(
            part in words for part in narrow_cells(result)[0].split() if part.strip(",*").replace(".", "").isdigit()
        )


@pytest.mark.long
@pytest.mark.toolchain
def test_a_real_loop(toolchain, monkeypatch):
    """The compiler itself makes the loop beside a row of a tiny size, and it is the slower one."""
    monkeypatch.setitem(SIZES, "tiny", SMALL)
    (result,) = bench_compile(ROWS[:1], toolchain, loop=True)
    assert result.error == ""
    assert result.times_faster > 2


def test_which_loops():
    """A loop of many tokens does not compile in reasonable time, and there is none of a block."""
    assert loop_row(ROWS[0]).id == "tiny decode-F16-loop"
    assert loop_row(ROWS[2]) is None
    assert loop_row(msgspec.structs.replace(ROWS[0], case="prefill_16-F16-chunk")) is None


@given(best=st.integers(1, 10**9), cycles=st.integers(1, 10**9))
def test_the_rule(best, cycles):
    """Worse is exactly what exceeds the best by more than a hundredth of it; anything fewer than the best is better."""
    verdict = judge(cycles, best)
    assert (verdict is Verdict.WORSE) == (cycles - best > best / 100)
    assert (verdict is Verdict.BETTER) == (cycles < best)
    assert judge(cycles, None) is Verdict.NEW
    failed = Result(row=ROWS[0], release="1.30.2", error="no")
    assert not passed([failed])
    assert failed.verdict is Verdict.FAILED
    assert cells(failed)[2:4] == ("does not compile", "missed")


@given(best=st.integers(1, 10**9))
def test_the_border(best):
    """The last cycle that passes and the first that does not, also where floats cannot tell them apart."""
    assert judge(best + best // 100, best) is Verdict.WITHIN
    assert judge(best + best // 100 + 1, best) is Verdict.WORSE


TIMES = st.none() | st.floats(1e-3, 1e6)
A_ROW = st.builds(
    Row,
    case=st.sampled_from(["decode-F16-chunk", "prefill_64-W4F16-chunk", "decode-W8F16-loop"]),
    size=st.just("0.1B"),
    target_ms=st.floats(1e-3, 1e6),
    loop_ms=TIMES,
    first_ms=TIMES,
    prototype_ms=TIMES,
    best=st.dictionaries(st.sampled_from(["1.28.1", "1.30.2", "2.0"]), st.integers(1, 2**62)),
) | st.builds(
    Row,
    case=st.sampled_from(["decode-BF16-chunk", "prefill_16-W8F16-chunk"]),
    size=st.sampled_from(["0.1B", "2.9B"]),
    block=st.integers(1, 11),
    target_ms=st.floats(1e-3, 1e6),
)


@given(rows=st.lists(A_ROW, unique_by=lambda row: row.id))
def test_round_trip(tmp_path_factory, rows):
    """What is written is read, to the last digit, and nothing else is left in the folder."""
    path = tmp_path_factory.mktemp("rows") / "rows.toml"
    write_rows(rows, path)
    assert read_rows(path) == tuple(rows) if rows else path.exists()
    assert [file.name for file in path.parent.iterdir()] == ["rows.toml"]


@given(rows=st.lists(A_ROW, unique_by=lambda row: row.id, min_size=1), cycles=st.integers(1, 2**62))
def test_a_best_gets_only_better(rows, cycles):
    """Recording never makes a best worse and touches no other release and no other field."""
    for before, after in zip(rows, record(rows, {rows[0].id: cycles}, "1.30.2"), strict=True):
        assert msgspec.structs.replace(after, best={}) == msgspec.structs.replace(before, best={})
        if before is rows[0]:
            assert after.best["1.30.2"] == min(cycles, before.best.get("1.30.2", cycles))
            assert {**after.best, "1.30.2": 0} == {**before.best, "1.30.2": 0}
        else:
            assert after == before


def test_rows_that_ship():
    """Those of the requirement: three decode precisions, prefill from 32 to 512, and one block of 2.9B."""
    targets = {row.id: row.target_ms for row in read_rows()}
    assert targets == {
        "0.1B decode-F16-chunk": 5.25,
        "0.1B decode-W8F16-chunk": 3.10,
        "0.1B decode-W4F16-chunk": 1.95,
        "0.1B prefill_32-F16-chunk": 5.90,
        "0.1B prefill_64-F16-chunk": 6.40,
        "0.1B prefill_128-F16-chunk": 7.40,
        "0.1B prefill_256-F16-chunk": 9.60,
        "0.1B prefill_512-F16-chunk": 16.0,
        "0.1B prefill_256-W4F16-chunk": 8.0,
        "2.9B block 16 decode-F16-chunk": 2.95,
        "2.9B block 16 decode-W4F16-chunk": 0.95,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("[x", "rows.toml: "),
        ("rows = 3", "rows"),
        ('[[rows]]\ncase = "decode-F16-chunk"\nsize = "0.1B"', "target_ms"),
        ('[[rows]]\ncase = "decode-F16-chunk"\nsize = "0.1B"\ntarget_ms = 1.0\nspeed = 3', "speed"),
        ('[[rows]]\ncase = "decode-F16"\nsize = "0.1B"\ntarget_ms = 1.0', "three parts with hyphens"),
        (
            '[[rows]]\ncase = "decode-F16-chunk"\nsize = "7B"\ntarget_ms = 1.0',
            "'7B' is none of 0.1B; those of 0.4B, 1.5B, 2.9B, 7.2B need",
        ),
        ('[[rows]]\ncase = "decode-F16-chunk"\nsize = "2.9B"\ntarget_ms = 1.0', "2.9B, 7.2B need a block"),
        (
            '[[rows]]\ncase = "decode-F16-chunk"\nsize = "7B"\nblock = 1\ntarget_ms = 1.0',
            "none of 0.1B, 0.4B, 1.5B, 2.9B",
        ),
        ('[[rows]]\ncase = "decode-F16-chunk"\nsize = "2.9B"\nblock = 0\ntarget_ms = 1.0', "one of 1 to 31"),
        ('[[rows]]\ncase = "decode-F16-loop"\nsize = "2.9B"\nblock = 1\ntarget_ms = 1.0', "variant 'loop'"),
        ('[[rows]]\ncase = "decode-F16-chunk"\nsize = "0.1B"\ntarget_ms = 0.0', "target_ms is 0.0, but should be"),
        ('[[rows]]\ncase = "decode-F16-chunk"\nsize = "0.1B"\ntarget_ms = nan', "target_ms is nan, but should be"),
        ('[[rows]]\ncase = "decode-F16-chunk"\nsize = "0.1B"\ntarget_ms = 1.0\nbest = { "1" = -1 }', "1 is -1, but"),
        (2 * '[[rows]]\ncase = "decode-F16-chunk"\nsize = "0.1B"\ntarget_ms = 1.0\n', "stands there twice"),
    ],
)
def test_mistakes(tmp_path, text, message):
    """A file that makes no sense is named, with the row and what is wrong in it."""
    path = tmp_path / "rows.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RowsError, match=re.escape(message)) as error:
        read_rows(path)
    assert str(path) in str(error.value)


def test_make():
    """``make bench-compile`` is this command."""
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    assert re.search(r"^bench-compile: setup\n\t\.venv/bin/rwkv-tpu bench-compile ", makefile, re.MULTILINE)
