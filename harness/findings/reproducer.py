"""A fault's reproducer: a small graph, what it should give, and where it goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.ops.expected import distance
from harness.ops.press import ARROWS, ArrowError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx

    from harness.ops.press import Press, Result

RIGHT, WRONG = "right", "wrong"

_WRONG_FROM = 1e-3  # NMSE: far above the rounding of any precision, far below what these faults give


@dataclass(frozen=True, kw_only=True)
class Reproducer:
    """One fault.

    Attributes:
        name: of its file in ``docs/findings/``.
        model: the graph.
        inputs: what goes in, in its order.
        expected: what should come out, float64; where it has a NaN, only the places of NaN are compared.
        top_expected: the same of TOP, where that differs: it has weights before they are coded.
        quantize: the argument of ``model_deploy``.
        flags: more of its arguments.
        wrong_from: NMSE above which numbers are wrong.
    """

    name: str
    model: onnx.ModelProto
    inputs: Sequence[np.ndarray]
    expected: Sequence[np.ndarray]
    top_expected: Sequence[np.ndarray] | None = None
    quantize: str = "F32"
    flags: tuple[str, ...] = ()
    wrong_from: float = _WRONG_FROM

    def expected_at(self, arrow: str) -> Sequence[np.ndarray]:
        """What should come out there."""
        return self.expected if arrow != "top" or self.top_expected is None else self.top_expected


@dataclass(frozen=True, slots=True)
class Reproduced:
    """What became of it.

    Attributes:
        outcome: for each arrow ``right``, ``wrong``, or the stage at which the way ended.
        results: the numbers, or the errors.
        folder: of the compile.
    """

    outcome: dict[str, str]
    results: dict[str, Result]
    folder: Path


def reproduce(reproducer: Reproducer, press: Press) -> Reproduced:
    """Compile it, compute it at every arrow, and judge."""
    made = press.press(reproducer.name, reproducer.model, reproducer.inputs, reproducer.quantize, reproducer.flags)
    outcome = {arrow: _outcome(reproducer, arrow, made.results[arrow]) for arrow in ARROWS}
    return Reproduced(outcome, made.results, made.folder)


def told(reproducer: Reproducer, shown: Reproduced) -> str:
    """Lines for a person: what should come out, and what does at each arrow."""
    lines = [f"  expected {_some(reproducer.expected)}"]
    for arrow, outcome in shown.outcome.items():
        result = shown.results[arrow]
        if isinstance(result, ArrowError):
            words = str(result).replace("\n", "\n           ")
            lines.append(f"  {arrow:8} ended at {outcome}: {words}")
        else:
            lines.append(f"  {arrow:8} {_some(result)}: {outcome}{_how_wrong(reproducer, arrow, result)}")
    return "\n".join(lines)


def _some(arrays: Sequence[np.ndarray]) -> str:
    values = ", ".join(f"{value:.4g}" for value in arrays[0].reshape(-1)[-6:])
    return f"shape {list(arrays[0].shape)}, last values {values}"


def _how_wrong(reproducer: Reproducer, arrow: str, result: Sequence[np.ndarray]) -> str:
    try:
        return f", nmse {distance(reproducer.expected_at(arrow), result).nmse:.2e}"
    except ValueError as error:
        return f", {error}"


def _outcome(reproducer: Reproducer, arrow: str, result: Result) -> str:
    if isinstance(result, ArrowError):
        return result.stage.value
    expected = reproducer.expected_at(arrow)
    if any(np.isnan(array).any() for array in expected):  # then it is of where they are, and no distance
        same = all(np.array_equal(np.isnan(want), np.isnan(got)) for want, got in zip(expected, result, strict=True))
        return RIGHT if same else WRONG
    try:
        nmse = distance(expected, result).nmse
    except ValueError:
        return WRONG
    return RIGHT if nmse <= reproducer.wrong_from else WRONG
