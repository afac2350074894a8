"""The loss curve as CSV and PNG."""

from __future__ import annotations

import csv
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from matplotlib.figure import Figure  # draws without a display

from reference.atomic import replacing
from reference.training.trainer import Point

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SMOOTHED = 50
"""Steps whose mean the second line shows."""


def write_csv(curve: Sequence[Point], path: Path) -> None:
    """Write a row per step, nothing rounded."""
    with replacing(path, force=True) as made, made.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in curve)


def write_png(curve: Sequence[Point], path: Path, title: str) -> None:
    """Draw the loss of each step and its running mean, and the learning rate below."""
    steps = [point.step for point in curve]
    losses = [point.loss_nats for point in curve]
    means = [sum(losses[max(0, i - _SMOOTHED) : i]) / min(i, _SMOOTHED) for i in range(1, len(losses) + 1)]
    figure = Figure(figsize=(8, 5), layout="constrained")
    loss, rate = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    loss.plot(steps, losses, color="0.75", linewidth=0.6, label="each step")
    loss.plot(steps, means, color="tab:blue", linewidth=1.4, label=f"mean of {_SMOOTHED} steps")
    loss.set(yscale="log", ylabel="loss (nats a learned token)", title=title)
    loss.legend()
    rate.plot(steps, [point.rate for point in curve], color="tab:orange")
    rate.set(xlabel="step", ylabel="learning rate")
    with replacing(path, force=True) as made:
        figure.savefig(made, dpi=110)
