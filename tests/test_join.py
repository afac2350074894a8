"""Nets joined in one bmodel: made once, with the sums of what they take, and a failure that can be run again."""

import dataclasses
import subprocess

import msgspec
import pytest

from compile.compiler import Bmodel, Compiled, CompileError, StageCost
from compile.join import joined
from compile.one_sign import Cut
from compile.parts import parts_of
from compile.spec import GraphKind, GraphSpec
from compile.stages import Stage
from tests.fake_codegen import a_profile
from tests.fake_compiler import fake_job

MODEL_TOOL = """#!/bin/sh
echo the words of model_tool
test "$1" = --combine || exit 2
shift
test -z "$TOOL_FAILS" || exit 3
while [ "$1" != -o ]; do cat "$1" >> joined; shift; done
mv joined "$2"
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """The parts of a graph of two layers, for a toolchain whose model_tool puts files one behind the other."""
    job = fake_job(tmp_path, monkeypatch)
    tool = job.toolchain.package / "bin" / "model_tool"
    tool.parent.mkdir()
    tool.write_text(MODEL_TOOL)
    tool.chmod(0o755)
    return [dataclasses.replace(job, spec=part) for part in parts_of(GraphSpec(kind=GraphKind.DECODE), 2)]


@pytest.fixture
def compiled(tmp_path):
    """Make bmodels of the jobs, each of its net's name; how often that was asked for."""
    asked = []

    def make(jobs):
        asked.append(len(jobs))
        return [bmodel(tmp_path / job.spec.name, 10**n) for n, job in enumerate(jobs)]

    make.asked = asked
    return make


def bmodel(folder, cycles):
    """Return a bmodel that holds its name and takes so many cycles."""
    folder.mkdir(exist_ok=True)
    (folder / "model.bmodel").write_text(f"{folder.name} ")
    costs = {"transform": StageCost(seconds=1.0, peak_bytes=cycles)}
    about = {
        "key": folder.name,
        "bmodel_sha256": "s",
        "bmodel_bytes": 1,
        "toolchain": "t",
        "f32_operations": (folder.name,),
        "wider": ("head_MatMul",) if folder.name == "head_1" else (),
        "cut": (Cut(product="head_MatMul", groups=1, of=2, worst=0.5),) if folder.name == "head_1" else (),
    }
    return Bmodel(folder, Compiled(**about, profile=a_profile(predicted_cycles=cycles), costs=costs), cached=False)


def test_joined_once(jobs, tmp_path, compiled):
    """All nets in order, their sums, their most memory; the second time nothing is compiled."""
    made = joined(jobs, tmp_path / "cache", what="all", compiled=compiled)
    assert made.path.read_text() == "embed_1 block_0_1 block_1_1 head_1 "
    result = made.result
    assert result.profile.predicted_cycles == 1111
    assert result.costs["transform"] == StageCost(seconds=4.0, peak_bytes=1000)
    assert result.costs["combine"].seconds > 0
    assert result.bmodel_bytes == made.path.stat().st_size
    assert result.f32_operations == ("embed_1", "block_0_1", "block_1_1", "head_1")
    assert result.wider == ("head_1: head_MatMul",)
    assert [one.product for one in result.cut] == ["head_1: head_MatMul"]
    assert joined(jobs, tmp_path / "cache", what="all", compiled=compiled).cached
    assert compiled.asked == [4]


def test_what_one_part_does_not_know(jobs, tmp_path, compiled):
    """It is unknown of all: a result from before it was kept is no sign that nothing is cut off."""

    def older(some):
        made = compiled(some)
        return [*made[:-1], dataclasses.replace(made[-1], result=msgspec.structs.replace(made[-1].result, cut=None))]

    assert joined(jobs, tmp_path / "cache", what="all", compiled=older).result.cut is None


def test_what_it_is_made_of(jobs, tmp_path, compiled):
    """Other jobs, or the same in another order, are another bmodel; no job, or a net's name twice, is a mistake."""
    cache = tmp_path / "cache"
    keys = {joined(some, cache, what="", compiled=compiled).result.key for some in (jobs, jobs[:-1], jobs[::-1])}
    assert len(keys) == 3
    for some in ([], [jobs[0], jobs[0]]):
        with pytest.raises(ValueError, match="each with a name of its own"):
            joined(some, cache, what="", compiled=compiled)


def test_a_failing_tool(jobs, tmp_path, compiled, monkeypatch):
    """The failure names the stage and keeps the log; its command runs again; nothing is in the cache."""
    monkeypatch.setenv("TOOL_FAILS", "yes")
    with pytest.raises(CompileError, match=r"codegen of all \[\w{8}\]: exited with status 3") as caught:
        joined(jobs, tmp_path / "cache", what="all", compiled=compiled)
    assert caught.value.stage is Stage.CODEGEN
    message = str(caught.value)
    assert "the words of model_tool" in message
    rerun = message.partition("rerun: ")[2].splitlines()[0]
    again = subprocess.run(["/bin/bash", "-c", rerun], capture_output=True, text=True, check=False)
    assert again.returncode == 3
    monkeypatch.delenv("TOOL_FAILS")
    assert not joined(jobs, tmp_path / "cache", what="all", compiled=compiled).cached
