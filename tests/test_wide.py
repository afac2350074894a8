"""What graphs of many tokens keep in F16 is what the codes stand for, and nothing else is kept so."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from compile.compiler import compile_graph
from compile.parts import PartSpec
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.storage import read_storage
from compile.wide import as_coded, coded, keeps_wide, wide_products
from harness.cases import parse_case
from harness.checkpoints import Model
from harness.jobs import job_of
from harness.paths import cache_folder
from reference import precision
from reference.emulated import stored
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic
from tokenizer.codec import Codec

GROUP = 64
SHAPE = ModelShape(
    n_layer=2, n_embd=128, head_size=64, n_ffn=256, n_vocab=320, ranks=LoraRanks(decay=32, rate=96, value=16, gate=64)
)
WEIGHTS = st.floats(-4, 4, width=16)


@given(
    W=some.arrays(np.float32, st.tuples(st.sampled_from([64, 128]), st.integers(1, 3)), elements=WEIGHTS),
    bits=st.sampled_from([4, 8]),
)
@settings(max_examples=200)
def test_codes_are_those_of_the_oracle(W, bits):
    """Written twice on purpose, to the bit."""
    np.testing.assert_array_equal(coded(W, bits, GROUP), precision.coded(torch.from_numpy(W), bits).numpy())


@pytest.mark.parametrize("quantization", [Quantization.W8F16, Quantization.W4F16])
def test_time_mix_is_what_its_codes_stand_for(quantization):
    """Every matrix of it, ranks that are no whole groups too; all else is as it was."""
    checkpoint = synthetic(SHAPE)
    given = {name: tensor.numpy() for name, tensor in checkpoint.tensors.items()}
    want = stored(checkpoint, precision.Precision(quantization.value)).tensors
    changed = set()
    for name, array in as_coded(given, quantization, GROUP).items():
        if array is not given[name]:
            changed.add(name)
            np.testing.assert_array_equal(array.astype(np.float16), want[name].numpy().astype(np.float16), name)
    per_layer = ["receptance", "key", "value", "output"], ["w1", "w2", "a1", "a2", "g1", "g2", "v1", "v2"]
    names = {f"blocks.{i}.att.{name}.weight" for i in range(2) for name in per_layer[0]}
    names |= {f"blocks.{i}.att.{name}" for i in range(2) for name in per_layer[1]}
    assert changed == names & set(given)


def test_a_width_that_groups_do_not_divide():
    """The compiler leaves such a matrix in F16, uncoded."""
    given = {"blocks.0.att.key.weight": np.ones((96, 96), np.float32), "blocks.0.att.w1": np.ones((96, 8), np.float32)}
    assert all(array is given[name] for name, array in as_coded(given, Quantization.W4F16, GROUP).items())


@pytest.mark.parametrize(
    ("spec", "quantization", "wide"),
    [
        (GraphSpec(kind=GraphKind.PREFILL, T=16), Quantization.W4F16, True),
        (GraphSpec(kind=GraphKind.PREFILL_ALL, T=2), Quantization.W8F16, True),
        (GraphSpec(kind=GraphKind.PREFILL, T=16), Quantization.F16, False),
        (GraphSpec(kind=GraphKind.DECODE), Quantization.W4F16, False),
        (PartSpec(kind=GraphKind.PREFILL, T=16, part="block_1"), Quantization.W4F16, False),
    ],
)
def test_which_graphs(spec, quantization, wide):
    """Those of many tokens, where weights are coded; not the parts that share their weights with decode."""
    assert keeps_wide(spec, quantization) is wide


def test_products_by_name():
    """Those of time-mix with a constant matrix, by the name of the last of the operations that the compiler joined."""
    mlir = """\
    %3 = "top.Weight"() : () -> tensor<128x64xf32> loc(#loc3)
    %4 = "top.MatMul"(%1, %3, %0) {do_relu = false} : (tensor<1x2x128xf32>) -> tensor<1x2x64xf32> loc(#loc9)
    %5 = "top.Weight"() : () -> tensor<64x128xf32> loc(#loc4)
    %6 = "top.MatMul"(%4, %5, %0) {do_relu = true} : (tensor<1x2x64xf32>) -> tensor<1x2x128xf32> loc(#loc6)
    %7 = "top.MatMul"(%4, %6, %0) {} : (tensor<1x2x64xf32>) -> tensor<1x2x2xf32> loc(#loc7)
#loc3 = loc("blocks.0.att.key.weight")
#loc4 = loc("blocks.0.ffn.key.weight")
#loc5 = loc("key_MatMul")
#loc6 = loc("ffn_Relu")
#loc7 = loc("scores_MatMul")
#loc8 = loc("key_Add")
#loc9 = loc(fused[#loc8, #loc5])
"""
    assert wide_products(mlir) == ["key_Add"]


@pytest.mark.toolchain
def test_real_compile(toolchain):
    """Time-mix is stored in 16 bits, channel-mix and head in 4; decode has everything in 4."""
    model = Model(synthetic(SHAPE), Codec.PLAIN)

    def matrices(case):
        bmodel = compile_graph(job_of(parse_case(case), model, toolchain), cache_folder())
        return {one.bits: one.count for one in read_storage(bmodel.folder).matrices}

    assert matrices("prefill_16-W4F16-chunk") == {4: 2 * 2 + 1, 16: 2 * 4 + 6 + 8}
    assert set(matrices("decode-W4F16-chunk")) == {4}
