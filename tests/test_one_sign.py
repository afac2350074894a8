"""Which weights the compiler's coder cuts off: beside a model of that coder, and in a TOP dialect by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compile.one_sign import Cut, cut_of, cut_products
from harness.compile_report import facts_of
from tests.blank_report import blank_report

MLIR = """
    %1 = "top.Weight"() : () -> tensor<4x2xf32> loc(#loc1)
    %2 = "top.MatMul"(%9, %1, %0) {do_relu = true, right_transpose = false} : (t) -> tensor<1x2xf32> loc(#loc3)
    %3 = "top.Weight"() : () -> tensor<2x4xf32> loc(#loc2)
    %4 = "top.MatMul"(%9, %3, %0) {do_relu = false, right_transpose = true} : (t) -> tensor<1x2xf32> loc(#loc4)
    %5 = "top.MatMul"(%4, %2, %0) {do_relu = false, right_transpose = false} : (t) -> tensor<1x2xf32> loc(#loc5)
#loc1 = loc("a")
#loc2 = loc("b")
#loc4 = loc("second")
#loc5 = loc("of activations")
#loc6 = loc("first")
#loc3 = loc(fused[#loc6, #loc7])
"""


def kept(group, bits):
    """What the compiler's interpreter keeps of a group, shown by the long test in tests/test_findings.py."""
    levels = 2**bits - 1
    step = (group.max() - group.min()) / levels
    zero = np.clip(np.rint(-group.min() / step), 0, levels)
    return (np.clip(np.rint(group / step) + zero, 0, levels) - zero) * step, step


@given(
    numbers=arrays(np.int64, 8, elements=st.integers(-1000, 1000)).filter(lambda one: np.ptp(one) > 0),
    away=st.integers(-3000, 3000),
    bits=st.sampled_from([4, 8]),
)
def test_what_is_cut_is_what_comes_out_wrong(numbers, away, bits):
    """A group is told where a weight comes out more than a step off, and otherwise none is, but for the rounding."""
    group = (numbers + away).astype(np.float64)
    back, step = kept(group, bits)
    wrong = np.abs(back - group).max() / step
    told = cut_of("p", group[:, None], bits=bits, group=8)
    assert wrong > 0.99 if told else wrong < 1.51
    if told:
        lost = np.abs(group).min() / np.abs(group).max()
        assert told == Cut(product="p", groups=1, of=1, worst=pytest.approx(lost))


def test_zeros_lose_nothing():
    """Neither do a group that is 0 and one that reaches 0, and a matrix that stays uncoded is not asked."""
    W = np.zeros((8, 3), np.float32)
    W[:4, 1] = [0, 1, 2, 3]
    W[:3, 2] = 1
    assert cut_of("p", W, bits=8, group=4) is None
    assert cut_of("p", W[:7] + 1, bits=8, group=4) is None
    W[4:, 0] = -1
    assert cut_of("p", W, bits=8, group=4) == Cut(product="p", groups=1, of=6, worst=1.0)


def test_by_hand(tmp_path):
    """A matrix that is stored the other way round, one with a fused ReLU, and one that is an activation."""
    a = np.array([[1, 1], [2, -2], [3, 3], [4, 4]], np.float32)
    np.savez(tmp_path / "w.npz", a=a, b=-a.T)
    told = cut_products(MLIR, tmp_path / "w.npz", {"first", "second", "of activations"}, bits=8, group=4)
    assert told == tuple(Cut(product=name, groups=1, of=2, worst=0.25) for name in ("first", "second"))
    assert [one.product for one in cut_products(MLIR, tmp_path / "w.npz", {"second"}, bits=8, group=4)] == ["second"]


def test_a_report_tells():
    """With the product's name and how much is lost; and where nothing is known, that."""
    assert dict(facts_of(blank_report(cut=None)))["largest weights cut off"].startswith("unknown")
    assert not any("cut off" in word.lower() for word, _ in facts_of(blank_report(cut=())))
    cut = Cut(product="gate", groups=23, of=1128, worst=0.416)
    assert dict(facts_of(blank_report(cut=(cut,))))["LARGEST WEIGHTS CUT OFF by the compiler"] == (
        "gate: in 23 of 1,128 groups, up to 42% of the largest"
    )
