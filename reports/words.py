"""Figures as people read them; the full digits stand in the records and in the CSV."""

from __future__ import annotations

import math

_DISTANCES = ("nats", "")  # units of what spans orders of magnitude


def figure_words(value: float | None, unit: str) -> str:
    """A figure without its unit; empty where there is none, and said where it is not finite."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not finite"
    if unit == "share":
        return f"{value:.4f}"
    if isinstance(value, int) or value.is_integer():
        return f"{value:,.0f}"
    if unit in _DISTANCES and abs(value) < 0.1:
        return f"{value:.1e}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
