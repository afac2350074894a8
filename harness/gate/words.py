"""Values as the output shows them: two that differ never look the same."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Show a value: counts in full, others to six digits."""
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def two_numbers(base: float, new: float) -> tuple[str, str]:
    """Show two values, in full precision where fewer digits would hide their difference."""
    words = number(base), number(new)
    return (repr(base), repr(new)) if words[0] == words[1] and base != new else words


def change(base: float, new: float) -> str:
    """Show how much *new* is of *base*: a ratio where there is one, else the difference."""
    if base > 0 and new > 0:
        ratio = new / base
        return f"x{ratio:.4g}" if abs(ratio - 1) >= 1e-3 else f"x(1{ratio - 1:+.2g})"
    return "" if math.isclose(new, base, rel_tol=0, abs_tol=0) else f"{new - base:+.6g}"
