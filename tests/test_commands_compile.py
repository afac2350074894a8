"""``rwkv-tpu compile``: what it tells of a finished compile, and of one that failed."""

import dataclasses
import sys

import msgspec
import numpy as np
import pytest

from compile.compiler import CompileError, Stage, compile_graph
from harness.cli import main
from harness.compile_report import CompileReport
from tests.fake_compiler import ARRAYS, plain_job

CASE = "decode-F16-chunk"


@pytest.fixture
def rwkv_tpu(monkeypatch, capsys):
    """Run the command line; returns exit status, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rwkv-tpu", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


@pytest.mark.toolchain
@pytest.mark.usefixtures("toolchain")
def test_a_report(rwkv_tpu, monkeypatch):
    """JSON has the stages, the figures and the matrices of the model that ships; the table says that it predicts."""
    status, said, _ = rwkv_tpu("compile", CASE, "--json")
    assert status == 0
    report = msgspec.json.decode(said, type=CompileReport)
    assert (report.case, report.checkpoint) == (CASE, "tiny")
    assert report.predicted_tokens_per_s == pytest.approx(1e9 / report.predicted_cycles)
    assert {one.stage for one in report.stages} >= {"export", "transform", "lower"}
    assert report.seconds == pytest.approx(sum(one.seconds for one in report.stages))
    assert [one["bits"] for one in report.matrices] == [16]
    assert min(report.tiu_instructions, report.gdma_instructions, report.ddr_read_bytes, report.ddr_write_bytes) > 0
    monkeypatch.setenv("COLUMNS", "150")
    table = rwkv_tpu("compile", CASE)[1]
    assert "predicted, no measurement" in table
    assert f"{report.tiu_instructions:,} TIU" in table


@pytest.mark.toolchain
@pytest.mark.usefixtures("toolchain")
def test_what_our_graph_leaves_wide(rwkv_tpu, monkeypatch):
    """Time-mix of a prompt is in F16 because the graph asks for it; the head's last column because of the compiler."""
    status, said, _ = rwkv_tpu("compile", "prefill_16-W4F16-chunk", "--json")
    assert status == 0
    report = msgspec.json.decode(said, type=CompileReport)
    assert report.wider == ("logits_MatMul_1",)
    assert not report.cut
    assert len(report.declared_wider) == 22
    monkeypatch.setenv("COLUMNS", "150")
    rows = rwkv_tpu("compile", "prefill_16-W4F16-chunk")[1].splitlines()
    (ours,) = (row for row in rows if "left in 16 bits, as our graph asks" in row)
    (theirs,) = (row for row in rows if "LEFT IN MORE BITS by the compiler" in row)
    assert "22 matrices of time-mix" in ours
    assert theirs.split()[-1] == "logits_MatMul_1"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_failure(rwkv_tpu, monkeypatch, arguments):
    """A stage that fails is named, in JSON too."""

    def fail(*_, **__):
        raise CompileError(Stage.LOWER, "decode", "died of SIGABRT")

    monkeypatch.setattr("harness.commands.compile_one.compile_case", fail)
    monkeypatch.setattr("harness.commands.compile_one.find", lambda *_: plain_job_toolchain())
    status, said, error = rwkv_tpu("compile", CASE, *arguments)
    assert status == 1
    if arguments:
        told = msgspec.json.decode(said)
        assert (told["stage"], told["case"]) == ("lower", CASE)
        assert "SIGABRT" in told["error"]
    else:
        assert "error: lower of decode: died of SIGABRT" in error


def plain_job_toolchain():
    """Stand in for a release that is never asked to do anything."""

    class Release:
        compiler_commit = "v0"

    return Release()


@pytest.mark.long
@pytest.mark.toolchain
@pytest.mark.usefixtures("toolchain")
def test_what_groups_of_32_cut(rwkv_tpu):
    """Of the model that ships: the gates', as docs/compiler.md has it."""
    status, said, _ = rwkv_tpu("compile", "decode-W8F16-chunk+group32", "--json")
    assert status == 0
    cut = msgspec.json.decode(said, type=CompileReport).cut
    assert [(one.groups, one.of) for one in cut] == [(23, 384), (52, 512)]
    assert all(one.product.endswith("att.projections.loras.outer_MatMul") for one in cut)


@pytest.mark.toolchain
def test_a_matrix_that_stays_wider_and_one_that_is_cut(toolchain, tmp_path):
    """A matrix that groups of 64 inputs do not divide stays F16 without a word from the compiler; we tell its name."""
    shape = {name: array for name, array in ARRAYS.items() if ".ffn." not in name}
    narrow = {name: array for name, array in ARRAYS.items() if ".ffn." in name}
    narrow["blocks.0.ffn.key.weight"] = narrow["blocks.0.ffn.key.weight"][:96]
    narrow["blocks.0.ffn.value.weight"] = narrow["blocks.0.ffn.value.weight"][:, :96]
    name = "blocks.0.att.receptance.weight"
    shape[name] = np.abs(shape[name]) + 1  # of one sign: the compiler cuts off the largest, and we tell that as well
    job = dataclasses.replace(
        plain_job(),
        arrays=shape | narrow,
        arrays_sha256="narrow",
        quantization=type(plain_job().quantization).W4F16,
        toolchain=toolchain,
    )
    result = compile_graph(job, tmp_path).result
    wider = result.wider
    # By the last operation that the compiler fused into the product: here the addition to the residual stream.
    assert "blocks.0.out_Add" in wider
    assert not any("receptance" in name for name in wider)
    (cut,) = result.cut
    assert "receptance" in cut.product
    assert cut.groups == cut.of
