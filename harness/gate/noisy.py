"""Is one side slower, or was it chance? One value a launch; launches are what is independent, calls in one are not.

All quotients of a launch of NEW and one of BASE are formed. Their median (Hodges and Lehmann) is the change; quotients
counted from either end bound the interval of the true ratio, with the exact distribution of Mann and Whitney's count
behind them. Nothing is assumed of how times are distributed, so that outliers cannot make the interval wrong. Ties
count for no change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What NEW's launches show against BASE's.

    Attributes:
        ratio: of NEW to BASE, the median over all pairs of launches.
        p_worse: one-sided, that NEW's launches rank so far above BASE's by chance.
        p_better: the same for below.
        noise: the ratio, at least 1, by which two launches of one side typically differ: the median over the pairs of
            a side, the larger of both sides. This is the A/A noise.
        quotients: logarithms of all ratios, sorted.
        launches: of BASE and NEW.
    """

    ratio: float
    p_worse: float
    p_better: float
    noise: float
    quotients: np.ndarray
    launches: tuple[int, int]

    def interval(self, level: float) -> tuple[float, float]:
        """Where the true ratio lies: beyond either end with probability *level* at most.

        It excludes 1 exactly where one of the two p is at most *level*. Where the launches are too few, it is all
        numbers.
        """
        below = cumulative(*self.launches)
        count = int(np.searchsorted(below, level, side="right"))  # of quotients outside at either end
        if count == 0:
            return (0.0, math.inf)
        return (math.exp(self.quotients[count - 1]), math.exp(self.quotients[-count]))


def change(base: Sequence[float], new: Sequence[float]) -> Change:
    """Compare launches; each value is of one launch, above zero and finite.

    Raises:
        ValueError: a value is not, or a side has none.
    """
    b, n = np.asarray(base, float), np.asarray(new, float)
    if not b.size or not n.size or not all((side > 0).all() and np.isfinite(side).all() for side in (b, n)):
        raise ValueError("expected at least one value a side, above zero and finite")
    b, n = np.log(b), np.log(n)
    quotients = np.sort((n[:, None] - b[None, :]).ravel())
    below = cumulative(b.size, n.size)
    not_worse, not_better = int((quotients <= 0).sum()), int((quotients >= 0).sum())
    return Change(
        ratio=math.exp(float(np.median(quotients))),
        p_worse=float(below[not_worse]),
        p_better=float(below[not_better]),
        noise=math.exp(max(_spread(b), _spread(n))),
        quotients=quotients,
        launches=(b.size, n.size),
    )


@lru_cache(maxsize=256)
def cumulative(base: int, new: int) -> np.ndarray:
    """Probability that at most k of the *base* * *new* quotients are below 1, for k from 0 on, if nothing changed."""
    # The counts are the coefficients of a Gaussian binomial: the product of (1 - q^(new+i)) / (1 - q^i).
    top = base * new
    ways = [1] + [0] * top
    for i in range(1, base + 1):
        for k in range(top, new + i - 1, -1):
            ways[k] -= ways[k - new - i]
        for k in range(i, top + 1):
            ways[k] += ways[k - i]
    total = math.comb(base + new, base)
    running, sums = 0, []
    for count in ways:
        running += count
        sums.append(running / total)
    return np.array(sums)


@lru_cache(maxsize=256)
def can_tell(base: int, new: int, level: float) -> bool:
    """Whether the clearest outcome of so many launches, that all of NEW are slower than all of BASE, would be seen."""
    return 1 / math.comb(base + new, base) <= level


@lru_cache(maxsize=256)
def launches_needed(level: float) -> int:
    """How many launches a side are the fewest with which a change could be seen at *level*, above zero."""
    n = 1
    while not can_tell(n, n, level):
        n += 1
    return n


def _spread(logs: np.ndarray) -> float:
    """Return how far two launches of one side lie apart, in logarithms: the median over all pairs; 0 for one launch."""
    if logs.size < 2:
        return 0.0
    i, j = np.triu_indices(logs.size, 1)
    return float(np.median(np.abs(logs[i] - logs[j])))
