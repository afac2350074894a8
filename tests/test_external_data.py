"""Weights beside the ONNX file, where a graph would be too large to hold them: the same graph, and the same bmodel."""

import gc
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compile.compiler import compile_graph
from compile.export import export, external_data
from compile.graphs.model import Rwkv7
from compile.process import run
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic
from tests.fake_compiler import fake_job

SHAPE = ModelShape(
    n_layer=2, n_embd=128, head_size=64, n_ffn=256, n_vocab=300, ranks=LoraRanks(decay=8, rate=8, value=8, gate=8)
)
ARRAYS = {name: tensor.numpy() for name, tensor in synthetic(SHAPE).tensors.items()}
LARGE = 60_000  # bytes: the matrices of a layer, the embedding and the head


def written(path, T, **limits):
    """Export a graph; its f32 operations, and its ONNX as a reader finds it, with all weights."""
    f32 = export(Rwkv7(ARRAYS, T=T, every_position=True), path, **limits)
    return f32, onnx.load(path).graph


@pytest.mark.parametrize("T", [1, 64])
def test_the_same_graph(tmp_path, T):
    """Operations, names, inputs, outputs and every weight are those of the graph that holds its weights itself."""
    f32, inside = written(tmp_path / "a.onnx", T)
    assert not external_data(tmp_path / "a.onnx").exists()
    other_f32, beside = written(tmp_path / "b.onnx", T, inline_bytes=0, large_bytes=LARGE)
    assert other_f32 == f32
    assert list(beside.node) == list(inside.node)
    assert list(beside.input) == list(inside.input)
    assert list(beside.output) == list(inside.output)
    weights, others = ({one.name: numpy_helper.to_array(one) for one in g.initializer} for g in (inside, beside))
    assert weights.keys() == others.keys()
    assert all(np.array_equal(weights[name], others[name]) for name in weights)
    alone = onnx.load(tmp_path / "b.onnx", load_external_data=False).graph.initializer
    outside = {one.name for one in alone if one.data_location == onnx.TensorProto.EXTERNAL}
    parameters = dict(Rwkv7(ARRAYS, T=T, every_position=True).named_parameters())
    assert outside == {name for name, weight in weights.items() if weight.nbytes >= LARGE and name in parameters}
    assert len(outside) == 2 + SHAPE.n_layer * 6
    size = external_data(tmp_path / "b.onnx").stat().st_size
    assert size >= sum(weights[name].nbytes for name in outside)
    assert (tmp_path / "b.onnx").stat().st_size < (tmp_path / "a.onnx").stat().st_size - size / 2


def test_a_compile_leaves_no_graph_in_memory(tmp_path, monkeypatch):
    """Whenever the interpreter would look for cycles: those of large graphs hold gigabytes."""
    job = fake_job(tmp_path, monkeypatch)
    monkeypatch.setattr("compile.compiler.export", partial(export, inline_bytes=0, large_bytes=LARGE))
    gc.collect()
    gc.disable()
    try:
        compile_graph(job, tmp_path / "cache")
        assert not [one for one in gc.get_objects() if type(one) is Rwkv7]
    finally:
        gc.enable()


@pytest.mark.toolchain
def test_the_compiler_reads_it(toolchain, tmp_path):
    """``model_transform`` makes the same TOP dialect with the same weights of both."""
    found = []
    for name, limits in (("a", {}), ("b", {"inline_bytes": 0, "large_bytes": LARGE})):
        folder = tmp_path / name
        folder.mkdir()
        export(Rwkv7(ARRAYS, T=1, every_position=True), folder / "model.onnx", **limits)
        command = [*toolchain.command("model_transform"), "--model_name", "decode", "--model_def", "model.onnx"]
        log = folder / "log"
        environment = toolchain.environment()
        done = run([*command, "--mlir", "m.mlir"], folder=folder, log=log, environment=environment, timeout_s=300)
        assert done.status == 0, log.read_text()
        (weights,) = folder.glob("decode_top_*_weight.npz")
        found.append(((folder / "m.mlir").read_text(), dict(np.load(weights))))
    (mlir, weights), (other_mlir, others) = found
    assert other_mlir == mlir
    assert weights.keys() == others.keys()
    assert all(np.array_equal(weights[name], others[name]) for name in weights)
