"""RWKV-7's building blocks, each compiled alone, in the ways in which exporters write them, against float64.

A fault fails at the arrow where it is born; the arrows behind that skip, and say so.
"""

from harness.ops.verdict import judge


def test_top(op, press, check):
    """The compiler's front end understands the ONNX: the TOP dialect, computed by the compiler's interpreter."""
    judge(check, press, op, "top")


def test_tpu(op, press, check):
    """Lowering and quantisation keep what it means: the TPU dialect, computed by the compiler's interpreter."""
    judge(check, press, op, "tpu")


def test_cmodel(op, press, check):
    """The code that is generated computes it: the bmodel, on the chip's simulator."""
    judge(check, press, op, "cmodel")
