"""Finds where a row of things turns from good to bad, asking as few of them as it can."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Answer(Enum):
    """What one of them is."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skipped"  # it cannot be told


class EndError(ValueError):
    """The first is not good, or the last is not bad: between them there is nothing to find, or nothing can be said."""

    def __init__(self, name: str, wanted: Answer, found: Answer) -> None:
        super().__init__(f"{name} should be {wanted.value}, but is {found.value}")
        self.name = name
        self.wanted = wanted
        self.found = found


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Where it turns.

    Attributes:
        doubtful: those between the two that cannot be told: each of them may be the first bad one as well.
    """

    last_good: str
    first_bad: str
    doubtful: tuple[str, ...]


def bisect(row: Sequence[str], ask: Callable[[str], Answer]) -> Boundary:
    """Find the last good and the first bad of a *row* that is good up to somewhere and bad from there on.

    Both ends are asked first. One that cannot be told is passed over for its nearest neighbour.

    Raises:
        EndError: the first is not good or the last is not bad.
    """
    low, high = 0, len(row) - 1
    for place, wanted in ((low, Answer.GOOD), (high, Answer.BAD)):
        if (found := ask(row[place])) is not wanted:
            raise EndError(row[place], wanted, found)
    skipped: set[int] = set()
    while candidates := [place for place in range(low + 1, high) if place not in skipped]:
        place = min(candidates, key=lambda one: abs(2 * one - low - high))
        match ask(row[place]):
            case Answer.GOOD:
                low = place
            case Answer.BAD:
                high = place
            case Answer.SKIP:
                skipped.add(place)
    return Boundary(last_good=row[low], first_bad=row[high], doubtful=tuple(row[low + 1 : high]))
