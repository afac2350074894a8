"""Operations compiled alone: the grid, the formulas, the caps, and that a fault is told where it is born."""

import numpy as np
import onnxruntime
import pytest

from compile.spec import Quantization
from harness.check import Check
from harness.ops.case import OpCase, OpGridError, load_ops, parse_shape, shipped_ops
from harness.ops.catalogue import BLOCKS
from harness.ops.expected import distance, expected
from harness.ops.limits import load_op_limits
from harness.ops.press import ArrowError, Outcome, model_of
from harness.ops.verdict import judge
from reports.schema import Stage

SHAPE = parse_shape("4x2x8")
NOT_IN_ORT = {
    "group_norm-group_normalization"
}  # opset 18 there has a scale for each group, later ones for each channel

every_idiom = pytest.mark.parametrize(
    ("block", "idiom"), [(block.name, idiom) for block in BLOCKS.values() for idiom in block.idioms]
)


def a_case(block, idiom, precision=Quantization.F16, shape=SHAPE):
    """A small one."""
    return OpCase(block=block, idiom=idiom, shape=shape, precision=precision)


class FakePress:
    """Gives what it was given."""

    def __init__(self, **results):
        self._results = results

    def outcome(self, _):
        """The same for every case."""
        return Outcome(self._results, None)


@every_idiom
def test_onnx_means_the_formula(block, idiom):
    """ONNX Runtime gives what the formula says: a difference further on is the compiler's."""
    case = a_case(block, idiom)
    session = onnxruntime.InferenceSession(model_of(case).SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, case.of_block.data(SHAPE)[0])
    assert distance(expected(case).plain, got).nmse < 1e-11


@pytest.mark.parametrize("block", BLOCKS)
def test_three_idioms(block):
    """Each block is written in three ways at least."""
    assert len(BLOCKS[block].idioms) >= 3


def test_the_grid_that_ships():
    """Every case has caps, and an id of its own."""
    cases = shipped_ops()
    assert len({case.id for case in cases}) == len(cases)
    assert {case.precision for case in cases} <= set(load_op_limits())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[default]]\nidioms = ["none-*"]\nshapes = ["1x1x8"]\nprecisions = ["F16"]', "no idiom is called 'none-\\*'"),
        ('[[default]]\nidioms = ["*"]\nshapes = ["1x8"]\nprecisions = ["F16"]', "shape '1x8', but should be"),
        ('[[default]]\nidioms = ["*"]\nshapes = ["1x1x8"]\nprecisions = ["F17"]', "F17"),
    ],
)
def test_a_bad_grid(tmp_path, text, words):
    """The error names the file and what is wrong."""
    path = tmp_path / "ops.toml"
    path.write_text(text)
    with pytest.raises(OpGridError, match=f"(?s)ops.toml.*{words}"):
        load_ops("default", path)


CASE = a_case("channel_mix", "relu_mul")
RIGHT = expected(CASE).plain
WRONG = [RIGHT[0] * 1.01]


def test_right_numbers_pass():
    """And leave their metrics."""
    check = Check()
    judge(check, FakePress(top=RIGHT, tpu=RIGHT, cmodel=RIGHT), CASE, "cmodel")
    assert check.metrics["nmse"] == 0


@pytest.mark.parametrize("wrong", [WRONG, [RIGHT[0] * np.nan], [RIGHT[0][:, :2]], []])
def test_wrong_numbers_fail_where_they_are_born(wrong):
    """One fault, one failure: the arrows behind it skip."""
    press = FakePress(top=RIGHT, tpu=wrong, cmodel=wrong)
    judge(Check(), press, CASE, "top")
    with pytest.raises(AssertionError, match="born at tpu"):
        judge(check := Check(), press, CASE, "tpu")
    assert check.stage is Stage.NUMERICS
    with pytest.raises(pytest.skip.Exception, match="born at tpu"):
        judge(Check(), press, CASE, "cmodel")


def test_a_crash_has_its_stage():
    """A tool that dies is told at its own stage."""
    crash = ArrowError(Stage.LOWER, "died of SIGABRT")
    with pytest.raises(ArrowError, match="SIGABRT"):
        judge(check := Check(), FakePress(top=RIGHT, tpu=crash, cmodel=crash), CASE, "tpu")
    assert check.stage is Stage.LOWER


def test_weights_that_were_not_coded():
    """Precise, but not what was asked for."""
    case = a_case("channel_mix", "relu_mul", Quantization.W4F16, parse_shape("4x1x64"))
    plain = expected(case).plain
    with pytest.raises(AssertionError, match="not in codes"):
        judge(Check(), FakePress(top=plain, tpu=plain, cmodel=plain), case, "tpu")
