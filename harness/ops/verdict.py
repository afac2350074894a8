"""Judges a case arrow by arrow: a fault belongs to the first arrow that breaks, and to that alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from compile.spec import Quantization
from harness.ops.expected import distance, expected
from harness.ops.limits import load_op_limits
from harness.ops.press import ARROWS, ArrowError
from reports.schema import Stage

if TYPE_CHECKING:
    import numpy as np

    from harness.check import Check
    from harness.ops.case import OpCase
    from harness.ops.expected import Distance, Expected
    from harness.ops.press import Press, Result


_NEARER = 2  # times nearer to one than to the other, by NMSE; half of the weights in codes tell nothing


def judge(check: Check, press: Press, case: OpCase, arrow: str) -> None:
    """Judge what a case gives at an arrow: ``top``, ``tpu`` or ``cmodel``.

    Raises:
        ArrowError: it gives nothing there; the check's stage says where the way ended.
        AssertionError: outside the caps.
        pytest.skip.Exception: an arrow before this one is broken, which then has the fault.
    """
    __tracebackhide__ = True
    right, results = expected(case), press.outcome(case).results
    got = results[arrow]
    if isinstance(got, list) and (found := _told(right, got, arrow)):
        check.metrics |= {"nmse": found.nmse, "peak_error": found.peak, "emulated_nmse": right.emulated.nmse}
    for before in ARROWS[: ARROWS.index(arrow)]:
        if broken := _broken(case, right, results[before], before):
            pytest.skip(f"born at {before}: {broken[0].partition(chr(10))[0]}")
    if isinstance(got, ArrowError):
        check.stage = got.stage
        raise got
    check.stage = Stage.NUMERICS
    broken = _broken(case, right, got, arrow)
    assert not broken, f"born at {arrow}: " + "; ".join(broken)


def _broken(case: OpCase, right: Expected, got: Result, arrow: str) -> list[str]:
    """What is wrong, in words; empty where nothing is."""
    if isinstance(got, ArrowError):
        return [f"{got.stage.value}: {got}"]
    try:
        found = _distance(right, got, arrow)
    except ValueError as error:
        return [str(error)]
    top = arrow == "top"
    if not top and case.precision.weight_bits and distance(right.plain, got).nmse < found.nmse / _NEARER:
        return [
            f"the weights are not in codes: nearer to the weights as they are than to their codes, {found.nmse:.2e}"
        ]
    limits = load_op_limits()[Quantization.F32 if top else case.precision]
    return limits.breaches(found, right.emulated32 if top else right.emulated)


def _distance(right: Expected, got: list[np.ndarray], arrow: str) -> Distance:
    """TOP has the weights as they are."""
    return distance(right.plain if arrow == "top" else right.coded, got)


def _told(right: Expected, got: list[np.ndarray], arrow: str) -> Distance | None:
    """The distance, where outputs have the right shapes."""
    try:
        return _distance(right, got, arrow)
    except ValueError:
        return None
