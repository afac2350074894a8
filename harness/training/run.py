"""Runs a training in a folder: progress, saved states, the curve, what it made."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from reference.training.curve import write_csv, write_png

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reference.training.trainer import Training

SAVED = "training.pt"
"""The file of a saved training in its folder."""


def run_training(training: Training, folder: Path, *, save_every: int, title: str, say: Callable[[str], None]) -> None:
    """Train to the end, from the last saved state on where the folder has one.

    Args:
        training: not begun yet.
        folder: gets ``training.pt`` every *save_every* steps, and ``curve.csv`` and ``curve.png``.
        save_every: steps.
        title: of the curve.
        say: for lines that stay.

    Raises:
        CheckpointError: the folder holds another training, or cannot be written.
        DivergedError: the loss is no longer finite.
    """
    saved = folder / SAVED
    if saved.exists():
        training.resume(saved)
        say(f"going on from step {training.step:,}")
    start, first = time.monotonic(), training.step
    with Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        console=Console(file=sys.stderr),
        disable=not sys.stderr.isatty(),
    ) as progress:
        bar = progress.add_task("training", total=training.steps, completed=training.step, loss="")
        while not training.finished:
            point = training.advance()
            progress.update(bar, completed=training.step, loss=f"loss {point.loss_nats:.4f}")
            if training.step % save_every == 0 or training.finished:
                training.save(saved)
                recent = [point.loss_nats for point in training.curve[-save_every:]]
                pace = (time.monotonic() - start) / (training.step - first)
                say(f"step {training.step:>6,}  loss {sum(recent) / len(recent):.4f}  {pace:.2f} s a step")
    write_csv(training.curve, folder / "curve.csv")
    write_png(training.curve, folder / "curve.png", title)
