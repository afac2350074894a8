"""Many tests in one gate: each must be so much clearer that all together seldom cry wolf (Holm's procedure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def levels(p_values: Sequence[float], rate: float) -> list[float]:
    """Give each test the level at which it is judged: a change is seen where p <= level.

    The clearest of M tests is judged at rate / M, the next at rate / (M - 1), and so on until one is not seen; those
    behind it are judged at its level. So all together see a change where there is none with probability *rate* at
    most, whatever the tests have to do with each other.
    """
    found = [0.0] * len(p_values)
    level = rate
    seen = True
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if seen:
            level = rate / (len(p_values) - rank)
        seen = seen and p_values[index] <= level
        found[index] = level
    return found
