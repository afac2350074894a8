"""Our graphs have nothing that the compiler's front end would simplify, so that it is told not to try."""

import numpy as np
import onnx
import pytest

from compile.dims import Dims
from compile.export import export, is_folded
from compile.flags import transform_flags
from compile.graphs.block import Rwkv7Block
from compile.half_state import Rwkv7HalfState
from compile.host_embedding import HOST_EMBEDDING
from compile.process import run
from compile.stacked_state import Rwkv7StackedState
from compile.streamed import Streamed
from compile.unfused import Rwkv7Unfused
from harness.cases import VARIANTS
from harness.checkpoints import open_model

GRAPHS = [*dict.fromkeys(VARIANTS.values()), Rwkv7HalfState, Rwkv7Unfused, Rwkv7Block, *HOST_EMBEDDING.values()]
GRAPHS += [Rwkv7StackedState]  # the others differ from what they stack in the same operations
SIMPLIFIED, PLAIN = (), transform_flags("1.30.2")


@pytest.fixture(scope="module")
def arrays():
    """Of the model that ships."""
    return {name: tensor.numpy() for name, tensor in open_model(None).checkpoint.tensors.items()}


def of_layer(arrays):
    """What a graph of the second layer alone takes."""
    return {name: array for name, array in arrays.items() if name.startswith("blocks.1.")}


@pytest.mark.parametrize("T", [1, 16, 80])
@pytest.mark.parametrize("graph", GRAPHS)
def test_nothing_is_left_to_compute(arrays, tmp_path, graph, T):
    """No operation has constants alone as inputs."""
    given = of_layer(arrays) if graph is Rwkv7Block else arrays
    export(graph(given, T=T, every_position=True), tmp_path / "model.onnx")
    assert is_folded(tmp_path / "model.onnx")


def test_something_is(tmp_path):
    """An Identity of a constant is such an operation, and the front end would not find what it gives."""
    nodes = [onnx.helper.make_node("Identity", ["c"], ["same"]), onnx.helper.make_node("Add", ["x", "same"], ["y"])]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    c = onnx.numpy_helper.from_array(np.ones(2, np.float32), "c")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y], [c])), tmp_path / "model.onnx")
    assert not is_folded(tmp_path / "model.onnx")


def test_releases():
    """One that cannot be told is not."""
    assert transform_flags("1.15.2") == ()
    assert transform_flags("1.24") == transform_flags("1.28.1") == PLAIN


def test_sizes_are_read_without_the_arrays():
    """Every layer asks for them, and an embedding takes seconds to make."""

    def never(name):
        pytest.fail(f"{name} was read")

    shapes = {"blocks.0.att.r_k": (2, 64), "emb.weight": (257, 128), "blocks.1.att.r_k": (2, 64)}
    assert Dims.of(Streamed(shapes, never)) == Dims(L=2, C=128, H=2, N=64, V=257)


@pytest.mark.toolchain
@pytest.mark.parametrize(("graph", "T"), [(VARIANTS["chunk"], 1), (VARIANTS["chunk"], 80), (Rwkv7Block, 16)])
def test_the_same_dialect(arrays, toolchain, tmp_path, graph, T):
    """To the letter, with the simplification and without."""
    given = of_layer(arrays) if graph is Rwkv7Block else arrays
    found = []
    for flags in (SIMPLIFIED, PLAIN):
        folder = tmp_path / ("plain" if flags else "simplified")
        folder.mkdir()
        export(graph(given, T=T, every_position=True), folder / "model.onnx")
        command = [*toolchain.command("model_transform"), "--model_name", "net", "--model_def", "model.onnx"]
        command += ["--mlir", "model.mlir", *flags]
        done = run(command, folder=folder, log=folder / "log", environment=toolchain.environment(), timeout_s=300)
        assert done.status == 0, (folder / "log").read_text()
        found.append((folder / "model.mlir").read_text())
    assert found[0] == found[1]
