"""How far two recurrent states lie apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.nets import Floats


@dataclass(frozen=True, slots=True)
class Difference:
    """What lies between two states, tensor by tensor.

    Attributes:
        exact: every number is the same, bit for bit, except that any NaN equals any other.
        largest: the largest absolute difference in each tensor; NaN where either holds a NaN or an infinity that the
            other does not.
        nmse: squared error over the energy of the first state's tensor. Unitless: 0 is exact, 1 is as bad as all
            zeros; infinite where the first is all zeros and the second is not, NaN as above.
    """

    exact: bool
    largest: tuple[float, ...]
    nmse: tuple[float, ...]


def compare(reference: Sequence[Floats], other: Sequence[Floats]) -> Difference:
    """Compare *other* with *reference*: float32 arrays of the same shapes.

    Raises:
        ValueError: number or shapes differ.
    """
    expected, found = [array.shape for array in reference], [array.shape for array in other]
    if expected != found:
        raise ValueError(f"expected states of shapes {expected}, got {found}")
    pairs = [_compare(one, two) for one, two in zip(reference, other, strict=True)]
    return Difference(
        all(exact for exact, _, _ in pairs),
        tuple(largest for _, largest, _ in pairs),
        tuple(nmse for _, _, nmse in pairs),
    )


def _compare(reference: Floats, other: Floats) -> tuple[bool, float, float]:
    same = (reference.view(np.uint32) == other.view(np.uint32)) | (np.isnan(reference) & np.isnan(other))
    if same.all():
        return True, 0.0, 0.0
    with np.errstate(invalid="ignore"):  # infinity minus infinity is the NaN that we want
        error = np.where(same, 0.0, other.astype(np.float64) - reference)
        energy = float(np.square(np.where(np.isfinite(reference), reference, 0.0), dtype=np.float64).sum())
        squared = float(np.square(error).sum())
    if not np.isfinite(squared):
        return False, float("nan"), float("nan")
    return False, float(np.abs(error).max()), squared / energy if energy else float("inf") if squared else 0.0
