"""One layer as a graph of its own: the same numbers as in the whole model, the names of its place, and a bmodel."""

import onnx
import pytest
import torch

from compile.compiler import Job, compile_graph
from compile.dims import Dims
from compile.export import export
from compile.floor import matrix_bytes, minimum
from compile.graphs.block import Rwkv7Block
from compile.graphs.model import Block, Rwkv7
from compile.identity import hash_arrays, hash_graph_source
from compile.parts import parts_of
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.storage import read_storage
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic, synthetic_block

SHAPE = ModelShape(
    n_layer=4, n_embd=128, head_size=64, n_ffn=256, n_vocab=50, ranks=LoraRanks(decay=8, rate=8, value=8, gate=8)
)
ARRAYS = {name: tensor.numpy() for name, tensor in synthetic(SHAPE).tensors.items()}


def block_arrays(i):
    """The tensors of layer i alone, without the layer norm of the embedding, which is no part of a layer."""
    tensors = synthetic_block(SHAPE, i).tensors
    return {name: tensor.numpy() for name, tensor in tensors.items() if ".ln0." not in name}


@pytest.mark.parametrize("i", [1, 2, 3])
def test_one_layer_of_the_same_checkpoint(i):
    """Made alone, a layer has the bits that it has in the whole checkpoint, and no tensor of another."""
    alone = block_arrays(i)
    assert set(alone) == {name for name in ARRAYS if name.startswith(f"blocks.{i}.")}
    assert all((alone[name] == ARRAYS[name]).all() for name in alone)
    assert synthetic_block(SHAPE, i).sha256 not in {synthetic_block(SHAPE, i - 1).sha256, synthetic(SHAPE).sha256}


class _Recording(Block):
    """Keeps what passes through, on both sides, by layer."""

    def forward(self, *inputs):
        outputs = super().forward(*inputs)
        self.seen = inputs, outputs
        return outputs


class _Recorded(Rwkv7):
    block = _Recording


@pytest.mark.parametrize("T", [1, 16])
@pytest.mark.parametrize("kind", [GraphKind.PREFILL, GraphKind.PREFILL_ALL])
def test_the_parts_are_the_model(T, kind):
    """Embedding, layers and head, one after the other, compute what the whole graph does; in float64 but the table."""
    torch.manual_seed(T)
    spec = GraphSpec(kind=GraphKind.DECODE if T == 1 else kind, T=T)
    whole = Rwkv7(ARRAYS, T=T, every_position=spec.kind is not GraphKind.PREFILL).double()
    states = [torch.randn(shape, dtype=torch.float64) for _, shape in whole.dims.state_shapes()]
    token = torch.randint(0, SHAPE.n_vocab, (1, T))
    want_logits, *want_states = whole(token, *states)
    embed, *blocks, head = parts_of(spec, SHAPE.n_layer)
    graphs = [
        part.graph({name: ARRAYS[name] for name in part.tensors(ARRAYS)}, T=T).double()
        for part in (embed, *blocks, head)
    ]
    assert sum(len(part.tensors(ARRAYS)) for part in (embed, *blocks, head)) == len(ARRAYS)
    (x,) = graphs[0](token)
    v_first, next_states = None, []
    for i, graph in enumerate(graphs[1:-1]):
        inputs = [x, *states[3 * i : 3 * i + 3], *([v_first] if i else [])]
        assert [one.shape for one in graph.example_inputs().values()] == [one.shape for one in inputs]
        x, *new = graph(*inputs)
        if i == 0:
            v_first = new.pop()
        next_states += new
    (logits,) = graphs[-1](x)
    for got, want in zip([logits, *next_states], [want_logits, *want_states], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)  # the embedding's table is float32
    assert [part.name for part in (embed, blocks[0], blocks[-1], head)] == [
        f"embed_{T}",
        f"block_0_{T}",
        f"block_3_{T}",
        f"head_{T}",
    ]


@pytest.mark.parametrize("T", [1, 16])
@pytest.mark.parametrize("i", [1, 2, 3])
def test_the_layer_inside_the_model(T, i):
    """Fed with what its layer gets inside a whole model, the block gives what the layer gives there, in float64."""
    torch.manual_seed(T)
    model = _Recorded(ARRAYS, T=T, every_position=True).double()
    states = [torch.randn(shape, dtype=torch.float64) for _, shape in model.dims.state_shapes()]
    model(torch.randint(0, SHAPE.n_vocab, (1, T)), *states)
    (x, *own_states, v_first), (want_x, want_states, _) = model.blocks[i].seen
    graph = Rwkv7Block(block_arrays(i), T=T, every_position=True).double()
    assert list(graph.example_inputs()) == ["x", *(name for name, _ in graph.dims.layer_state_shapes(i)), "v_first"]
    given = [x, *own_states, v_first]
    assert [one.shape for one in graph.example_inputs().values()] == [one.shape for one in given]
    got_x, *got_states = graph(*given)
    for got, want in zip([got_x, *got_states], [want_x, *want_states], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    moved, *_ = graph(*given[:-1], v_first + 1)
    assert not torch.allclose(moved, want_x), "the value residual counts"


@pytest.mark.parametrize("T", [1, 16])
def test_names(tmp_path, T):
    """Inputs, outputs and quantities are named by the layer's place in the model; v_first comes last of the inputs."""
    f32 = export(Rwkv7Block(block_arrays(2), T=T), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    states = ["blocks.2.att.shift", "blocks.2.att.state", "blocks.2.ffn.shift"]
    assert [value.name for value in graph.input] == ["x", *states, "v_first"]
    assert [value.name for value in graph.output] == ["x.next", *(name + ".next" for name in states)]
    whole_f32 = export(Rwkv7(ARRAYS, T=T, every_position=True), tmp_path / "whole.onnx")
    whole = onnx.load(tmp_path / "whole.onnx").graph
    # Constants that layers have in common are shared in the whole graph, by Identity.
    made, want = (
        {name for node in one.node if node.op_type != "Identity" for name in node.output} for one in (graph, whole)
    )
    named = {name for name in want if name.startswith("blocks.2.")}
    assert len(named) > 10
    assert {name for name in made if name.startswith("blocks.")} == named - {"blocks.2.out"}
    assert set(f32) == {name for name in whole_f32 if name.startswith("blocks.2.")}


def test_arrays_that_are_no_layer():
    """A whole model, nothing, two layers, or the first with the layer norm of the embedding, are refused."""
    with_norm = {name: array for name, array in ARRAYS.items() if name.startswith("blocks.0.")}
    for arrays in (ARRAYS, {}, block_arrays(1) | block_arrays(2), with_norm):
        with pytest.raises(ValueError, match="should be of one layer"):
            Rwkv7Block(arrays, T=1)


def test_sizes_of_a_layer():
    """Read from its tensors: one layer, no vocabulary; a whole model's are as before."""
    assert Dims.of(block_arrays(3)) == Dims(L=1, C=128, H=2, N=64, V=0)
    assert Dims.of(ARRAYS) == Dims(L=4, C=128, H=2, N=64, V=50)


def test_the_floor_of_a_layer():
    """Its weights and its state, and three rows of activations: of the residual stream in and out, and v_first."""
    shapes = {name: array.shape for name, array in block_arrays(2).items()}
    least = minimum(shapes, GraphSpec(kind=GraphKind.DECODE), Quantization.F16)
    assert least.weight_bytes == 2 * sum(array.size for array in block_arrays(2).values())
    assert least.embedding_bytes == 0
    assert least.io_bytes == 3 * 128 * 4
    assert least.state_bytes == 2 * (2 * 128 + 2 * 64 * 64) * 4
    sixteen = minimum(shapes, GraphSpec(kind=GraphKind.PREFILL, T=16), Quantization.F16)
    assert sixteen.io_bytes == 16 * least.io_bytes
    assert sixteen.operations == 16 * least.operations


def test_a_class_of_its_own():
    """A block's bmodel is never taken for that of a whole model."""
    assert hash_graph_source(Rwkv7Block) != hash_graph_source(Rwkv7)


@pytest.mark.toolchain
@pytest.mark.parametrize("quantization", [Quantization.F16, Quantization.W4F16])
def test_real_compile(toolchain, tmp_path, quantization):
    """The real compiler takes it; the bmodel holds each matrix in its precision, LoRA halves of 8 inputs too."""
    arrays = block_arrays(2)
    job = Job(
        arrays=arrays,
        arrays_sha256=hash_arrays(arrays),
        variant=Rwkv7Block,
        spec=GraphSpec(kind=GraphKind.DECODE),
        quantization=quantization,
        toolchain=toolchain,
    )
    bmodel = compile_graph(job, tmp_path)
    assert bmodel.result.profile.predicted_cycles > 1000
    storage = read_storage(bmodel.folder)
    big = 4 * matrix_bytes(128, 128, quantization) + matrix_bytes(128, 256, quantization) * 2
    own = {one.bits: one for one in storage.matrices}[4 if quantization is Quantization.W4F16 else 16]
    assert own.count >= 6
    assert own.bytes >= big
    assert not storage.above(quantization)
    assert 0 < storage.f32_operations < storage.operations
