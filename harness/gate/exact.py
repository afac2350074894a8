"""Values that chance has no part in: one of BASE, one of NEW, one limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.gate.rules import Better

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.gate.rules import Rule


def worst(values: Iterable[float], better: Better) -> float:
    """Return the worst of the repeats of one side."""
    return max(values) if better is Better.LOWER else min(values)


def is_worse(base: float, new: float, rule: Rule) -> bool:
    """Whether *new* is worse than *base* by more than the rule's limits, beyond all of those given."""
    loss = new - base if rule.better is Better.LOWER else base - new
    if not loss > 0:
        return False
    beyond = True
    if rule.ratio is not None:
        share = rule.ratio - 1 if rule.better is Better.LOWER else 1 - 1 / rule.ratio
        beyond = loss > abs(base) * share
    if rule.difference is not None:
        beyond = beyond and loss > rule.difference
    return beyond


def is_better(base: float, new: float, rule: Rule) -> bool:
    """Whether the way back from *new* to *base* would be a regression."""
    return is_worse(new, base, rule)
