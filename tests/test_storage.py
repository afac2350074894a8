"""What a final MLIR says about precision: by hand, in the one that ships with the tests, and in what is none."""

import re
from pathlib import Path

import pytest

from compile.spec import Quantization
from compile.storage import Matrices, StorageError, parse_storage, read_storage

TINY = Path(__file__).parent / "profiles" / "tiny"

MLIR = """
    %1 = "top.Weight"() {path = "a"} : () -> tensor<1x256x8xf16, 1 : i64> loc(#loc1)
    %2 = "top.Weight"() {path = "b"} : () -> tensor<1x1x8xf32, 2 : i64> loc(#loc2)
    %3:2 = "tpu.Group"(%arg0) ({
      %9 = "tpu.Load"(%1) {x = [1, 2]} : (tensor<1x256x8xf16, 1 : i64>) -> tensor<1x256x8xf16, 1 : i64> loc(#loc3)
      %10 = "tpu.MatMul"(%8, %9, %0) {n = 1} : (tensor<1x1x256xf16>, tensor<1x256x8xf16>) -> tensor<1x1x8xf16>
      %11 = "tpu.Mul"(%10, %2) {a = 1} : (tensor<1x1x8xf16>, tensor<1x1x8xf32>) -> tensor<1x1x8xf32> loc(#loc4)
      "tpu.Yield"(%11) : (tensor<1x1x8xf32>) -> () loc(#loc5)
    }) {g = 1} : (tensor<1x1x256xf16>) -> (tensor<1x1x8xf32>, tensor<1x1x8xf32>) loc(#loc6)
    %9 = "tpu.Cast"(%3#0) {a = 1} : (tensor<1x1x8xf32>) -> tensor<1x1x8xf16> loc(#loc7)
    %10 = "tpu.MatMul"(%7, %1, %0) {n = 1} : (tensor<1x1x256xf16>, tensor<1x256x8xf16>, none) -> tensor<1x1x8xf16>
    %11 = "tpu.MatMul"(%7, %9, %0) {n = 1} : (tensor<1x1x8xf32>, tensor<1x8x1xf32>) -> tensor<1x1x1xf32>
    %12 = "top.Weight"() {path = "w"} : () -> tensor<64x32xui8, 3 : i64> loc(#loc9)
    %13 = "top.Weight"() {path = "s"} : () -> tensor<64x1x1xf16, 3 : i64> loc(#loc9)
    %14 = "top.Weight"() {path = "z"} : () -> tensor<64x1x1xui8, 3 : i64> loc(#loc9)
    %15 = "tpu.A16MatMul"(%7, %12, %13, %14, %0) {q_group_size = 64 : i64, weight_bits = 4 : i64} : \
(tensor<1x1x64xf16>, tensor<64x32xui8>, tensor<64x1x1xf16>, tensor<64x1x1xui8>, none) -> tensor<1x1x64xf16> loc(#loc10)
"""


def test_by_hand():
    """A matrix that is used twice counts once, a product of two activations not, whatever its second side is called."""
    storage = parse_storage(MLIR, "here")
    half = Matrices(bits=16, count=1, bytes=256 * 8 * 2)
    assert storage.matrices == (Matrices(bits=4, count=1, bytes=64 * 32 + 64 * 2 + 64), half)
    assert (storage.operations, storage.f32_operations) == (5, 2)
    assert storage.above(Quantization.W4F16) == (half,)
    assert storage.above(Quantization.W8F16) == (half,)
    assert storage.above(Quantization.F16) == ()
    half_named = MLIR.replace("-> tensor<1x1x8xf16>", "-> tensor<1x1x8xf16> loc(#loc4)")
    located = parse_storage(f'{half_named}\n#loc4 = loc("p")\n', "here")
    assert located.wider(Quantization.W4BF16) == ("p",)
    assert located.wider(Quantization.W4BF16, ["p"]) == located.wider(Quantization.BF16) == ()


def test_the_tiny_one():
    """One product with a matrix and its activation, both in float16."""
    storage = read_storage(TINY)
    assert storage.matrices == (Matrices(bits=16, count=1, bytes=256 * 512 * 2, names=("z_Add",)),)
    assert storage.f32_operations == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a final MLIR"),
        ("hello\nworld", "not a final MLIR"),
        (
            MLIR.replace("tensor<64x32xui8, 3", "tensor<64x32xi3, 3"),
            "here:13: a weight of i3, but should be one of f32",
        ),
    ],
)
def test_other_formats(text, message):
    """What is not understood is an error with its line, never a zero."""
    with pytest.raises(StorageError, match=re.escape(message)):
        parse_storage(text, "here")


def test_no_file(tmp_path):
    """A folder without one is named."""
    with pytest.raises(StorageError, match=re.escape(str(tmp_path)) + ": 0 files"):
        read_storage(tmp_path)
