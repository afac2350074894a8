"""Compiling: the real toolchain on a tiny model, the cache, and every way to fail."""

import dataclasses
import importlib.util
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from compile.compiler import CompileError, RefusedError, Stage, compile_graph
from compile.flags import known_flags, needed_flags
from compile.graphs.model import Block, ChannelMix, Rwkv7
from compile.identity import hash_arrays
from compile.sameness import differences
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.toolchain import Toolchain
from compile.unfused import LOSES_RELU, Rwkv7Unfused
from reference.synthetic import synthetic
from tests.fake_compiler import ARRAYS, SHAPE, fake_job, plain_job


@pytest.fixture
def job():
    """A decode graph of a model of one layer, for a toolchain to be put in."""
    return plain_job()


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The job with a toolchain whose tools are scripts that do as the variable FAKE says."""
    return fake_job(tmp_path, monkeypatch)


@pytest.mark.toolchain
def test_real_compile(job, toolchain, tmp_path):
    """The real compiler makes a bmodel with a prediction; the same job then costs nothing, and says so."""
    job = dataclasses.replace(job, toolchain=toolchain)
    said = []
    first = compile_graph(job, tmp_path, say=said.append)
    assert not first.cached
    assert first.path.stat().st_size == first.result.bmodel_bytes > 1_000_000
    profile = first.result.profile
    assert profile.predicted_cycles > 1000
    assert min(profile.tiu_instructions, profile.gdma_instructions, profile.ddr_read_bytes, profile.flops) > 0
    assert list(first.result.costs) == [stage.value for stage in Stage]
    assert all(cost.seconds > 0.05 and cost.peak_bytes > 50e6 for cost in first.result.costs.values())
    assert [line.split()[-2] for line in said[:-1]] == [stage.value for stage in Stage]
    assert "model_deploy" in (first.folder / "deploy.log").read_text()
    second = compile_graph(job, tmp_path)
    assert second.cached
    assert second.result == first.result
    # Compiled once more, nothing but the date in the bmodel is another one, stage by stage.
    again = compile_graph(job, tmp_path / "again")
    assert differences(first.folder, again.folder) == ()
    assert again.result.undated_sha256 == first.result.undated_sha256


@pytest.mark.parametrize(
    ("what", "stage", "reason"),
    [
        ("model_transform.py:exit", Stage.TRANSFORM, "exited with status 3"),
        ("model_transform.py:abort", Stage.TRANSFORM, "died of SIGABRT"),
        ("model_transform.py:silent", Stage.TRANSFORM, "left no model.mlir"),
        ("model_deploy.py:exit", Stage.LOWER, "exited with status 3"),
        ("model_deploy.py:silent", Stage.LOWER, "left no model.bmodel"),
        ("codegen", Stage.CODEGEN, "exited with status 1"),
        ("no profile", Stage.CODEGEN, "left no profile"),
        ("lost", Stage.LOWER, "must stay in float32 are not in the TOP dialect"),
    ],
)
def test_failing_stages(fake, tmp_path, monkeypatch, what, stage, reason):
    """A failure names stage, reason, log and last words; its command reproduces it; nothing half-made is cached."""
    monkeypatch.setenv("FAKE", what)
    if what == "lost":
        (tmp_path / "locations").write_text("no operation at all")
    with pytest.raises(CompileError, match=reason) as caught:
        compile_graph(fake, tmp_path / "cache")
    assert caught.value.stage is stage
    message = str(caught.value)
    assert "the words of model_" in message
    rerun = message.partition("rerun: ")[2].splitlines()[0]
    again = subprocess.run(["/bin/bash", "-c", rerun], capture_output=True, text=True, check=False)
    assert "the words of model_" in again.stdout
    if reason.startswith("exited"):
        assert again.returncode != 0
    assert not [path for path in (tmp_path / "cache" / "bmodels").iterdir() if path.is_dir()]
    monkeypatch.setenv("FAKE", "work")
    assert what == "lost" or not compile_graph(fake, tmp_path / "cache").cached


@pytest.mark.parametrize(("tool", "stage"), [("model_transform.py", Stage.TRANSFORM), ("model_deploy.py", Stage.LOWER)])
def test_time_limit(fake, tmp_path, monkeypatch, tool, stage):
    """A tool that hangs is stopped at its limit, with all that it started; the error names the stage."""
    monkeypatch.setenv("FAKE", f"{tool}:sleep")
    start = time.monotonic()
    with pytest.raises(CompileError, match=f"^{stage.value} of decode .*stopped at its time limit") as caught:
        compile_graph(fake, tmp_path / "cache", timeout_s=3)
    assert caught.value.stage is stage
    assert time.monotonic() - start < 60


def test_a_graph_that_refuses(fake, tmp_path):
    """What cannot be written as a graph is said in its words, without a log that there is not; nothing is kept."""

    class Refuses(Rwkv7):
        def __init__(self, *_, T, **__):
            raise ValueError(f"{T} tokens, but should be a multiple of 16")

    job = dataclasses.replace(fake, variant=Refuses, spec=GraphSpec(kind=GraphKind.PREFILL, T=17))
    with pytest.raises(RefusedError, match=r"^export of prefill_17 F16 .*refuses: 17 tokens") as caught:
        compile_graph(job, tmp_path / "cache")
    assert caught.value.stage is Stage.EXPORT
    assert "log:" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_dir() and path.name != "bmodels"]


def test_a_source_that_is_edited_meanwhile(fake, tmp_path):
    """A result has the key that was asked for, whatever becomes of the sources; a new job has another key."""
    source = tmp_path / "edited.py"
    source.write_text("from compile.graphs.model import Rwkv7\nclass Edited(Rwkv7):\n    pass\n")
    spec = importlib.util.spec_from_file_location("edited", source)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "edited", module)
        spec.loader.exec_module(module)
        job = dataclasses.replace(fake, variant=module.Edited)

        def edit(line):
            if "transform" in line:
                source.write_text(source.read_text() + "# edited\n")

        made = compile_graph(job, tmp_path / "cache", say=edit)
        assert "# edited" in source.read_text()
        assert made.result.key == made.folder.name == job.key
        assert dataclasses.replace(job).key != job.key


def test_damaged_cache(fake, tmp_path):
    """A cached bmodel that is not what was stored, or lacks its result, is compiled again."""
    for damage in (
        lambda folder: (folder / "model.bmodel").write_bytes(b"other"),
        lambda folder: (folder / "model.bmodel").unlink(),
        lambda folder: (folder / "result.json").write_text('{"key":'),
        lambda folder: (folder / "result.json").unlink(),
    ):
        damage(compile_graph(fake, tmp_path).folder)
        assert not compile_graph(fake, tmp_path).cached
        assert compile_graph(fake, tmp_path).cached


class _OtherMix(ChannelMix):
    """Differs in where it is written, not in what it does."""


class _OtherBlock(Block):
    channel_mix = _OtherMix


class _Other(Rwkv7):
    block = _OtherBlock


def test_keys_tell_apart(fake):
    """Whatever determines a bmodel is part of its key: weights, graph, length, precision, flags, toolchain."""
    arrays = ARRAYS | {"ln_out.bias": ARRAYS["ln_out.bias"] + 1e-7}
    receipt = fake.toolchain.receipt
    others = [
        dataclasses.replace(fake, arrays_sha256=hash_arrays(arrays)),
        dataclasses.replace(fake, variant=_Other),
        dataclasses.replace(fake, spec=GraphSpec(kind=GraphKind.PREFILL, T=16)),
        dataclasses.replace(fake, spec=GraphSpec(kind=GraphKind.PREFILL_ALL, T=16)),
        dataclasses.replace(fake, quantization=Quantization.BF16),
        dataclasses.replace(fake, flags=("--opt", "1")),
        dataclasses.replace(fake, toolchain=Toolchain(Path("x"), _changed(receipt, wheel_sha256="1" * 64))),
        dataclasses.replace(fake, toolchain=Toolchain(Path("x"), _changed(receipt, pins=("numpy==1.24.3",)))),
    ]
    keys = [fake.key, *(other.key for other in others)]
    assert len(set(keys)) == len(keys)
    assert dataclasses.replace(fake).key == fake.key


def _changed(receipt, **changes):
    return type(receipt)(**{name: getattr(receipt, name) for name in receipt.__struct_fields__} | changes)


def test_array_hash_sees_everything():
    """Names, shapes and values all count; the order of names does not."""
    one = {"a": ARRAYS["ln_out.bias"], "b": ARRAYS["ln_out.weight"]}
    assert hash_arrays(one) == hash_arrays(dict(reversed(one.items())))
    for other in (
        {"a": one["b"], "b": one["a"]},
        {"a": one["a"]},
        {"a": one["a"].reshape(2, 64), "b": one["b"]},
        {"a": one["a"].astype("float64"), "b": one["b"]},
    ):
        assert hash_arrays(other) != hash_arrays(one)


def test_two_at_once(fake, tmp_path):
    """Of two compiles of one job, one compiles and the other waits and finds it done."""
    with ThreadPoolExecutor() as pool:
        compiles = [pool.submit(compile_graph, fake, tmp_path) for _ in range(2)]
    assert sorted(one.result().cached for one in compiles) == [False, True]


def test_flags_of_a_graph():
    """No search for layer groups for many tokens or one head; one token keeps the order of its operations."""
    one_head = dataclasses.replace(SHAPE, n_embd=64)
    arrays = {name: tensor.numpy() for name, tensor in synthetic(one_head).tensors.items()}
    decode, prefill = GraphSpec(kind=GraphKind.DECODE), GraphSpec(kind=GraphKind.PREFILL, T=16)
    assert needed_flags(arrays, decode) == ("--disable_layer_group", "--quant_output")
    assert needed_flags(ARRAYS, decode) == ("--disable_topo_sort", "--quant_output")
    assert needed_flags(ARRAYS, prefill) == ("--opt", "1", "--quant_output")


def test_flags_that_a_release_is_too_old_for():
    """They are left out; with the releases that have them, all stay."""
    flags = ("--disable_topo_sort", "--opt", "1", "--quant_output")
    assert known_flags(flags, "1.24") == flags[1:]
    assert known_flags(flags, "1.28.1") == known_flags(flags, "1.30.2") == flags


@pytest.mark.long
@pytest.mark.toolchain
@pytest.mark.parametrize("quantization", sorted(LOSES_RELU, key=lambda one: one.value))
def test_the_relu_of_bf16_codes(job, toolchain, tmp_path, quantization):
    """Fused into its product the ReLU is gone from the compiled model; the graph that ships keeps it."""
    found = {}
    for variant in (Rwkv7, Rwkv7Unfused):
        wanted = dataclasses.replace(job, toolchain=toolchain, quantization=quantization, variant=variant)
        folder = compile_graph(wanted, tmp_path).folder
        (final,) = folder.glob("*_final.mlir")
        text = final.read_text()
        found[variant] = text.count('"tpu.Relu"') + text.count("do_relu = true")
    assert found == {Rwkv7: 0, Rwkv7Unfused: 1}, "where the first is 1, the release no longer loses it"


@pytest.mark.long
@pytest.mark.toolchain
def test_two_devices(job, toolchain, tmp_path):
    """For two devices the compiler makes the same instructions twice: nothing of these graphs is split."""
    one, two = (
        compile_graph(dataclasses.replace(job, toolchain=toolchain, flags=flags), tmp_path).result.profile
        for flags in ((), ("--num_device", "2"))
    )
    assert (two.predicted_cycles, two.ddr_read_bytes) == (2 * one.predicted_cycles, 2 * one.ddr_read_bytes)
    assert (two.tiu_instructions, two.gdma_instructions) == (2 * one.tiu_instructions, 2 * one.gdma_instructions)
