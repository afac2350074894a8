"""``rwkv-tpu calibrate``: what good runs say of the caps."""

from __future__ import annotations

from difflib import unified_diff
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.calibrate import good_run, lines, recalibrated
from harness.limits import LIMITS, load_limits

_WIDTH = 140


def calibrate(
    runs: Annotated[list[Path], typer.Argument(help="folders of good runs", metavar="RUN…")],
    file: Annotated[Path, typer.Option("--limits", help="the caps", metavar="FILE")] = LIMITS,
    write: Annotated[bool, typer.Option("--write", help="put the worst good values into the file")] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="let them be lower than the file's, too: these runs are all that there is"),
    ] = False,
) -> None:
    """Recompute the worst good values from repeated good RUNs, and show how they differ from those of the caps' file.

    Interrupted runs and runs with a failure are refused. No cap may be above 3 times the worst good value, and one that
    is looser than it began needs a reason in the file: otherwise the exit code is 1, and nothing is written. The caps
    themselves are changed by hand.

    Example:
        rwkv-tpu calibrate runs/2026*-cmodel --write
    """
    limits, _ = load_limits(file)
    found = lines([good_run(run) for run in runs], limits)
    table = Table("precision", "metric", "worst good", "in the file", "cap", "cap / worst", "where")
    for line in found:
        raised = line.before is None or line.found.value > line.before
        table.add_row(
            line.quantization.value,
            line.metric,
            f"{line.found.value:.2e}",
            "" if line.before is None else f"{line.before:.2e}",
            f"{line.cap:.2e}",
            f"{line.times:.1f}",
            line.found.where,
            style="yellow" if raised else None,
        )
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table)
    if len(runs) == 1:
        typer.echo("one run alone: how much values differ from run to run is not known")
    before = file.read_text(encoding="utf-8")
    after = recalibrated(before, found, replace=replace)
    difference = list(unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=2))
    typer.echo("\n".join(difference) if difference else "nothing to change")
    if write and difference:
        file.write_text(after, encoding="utf-8")
        typer.echo(f"written: {file}")
