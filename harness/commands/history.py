"""``rwkv-tpu history``: an index of runs, and what changed from one to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.nightly.night import HISTORY, PAGE
from reports.history import Added, History
from reports.history_page import write_history
from reports.schema import RecordsError
from reports.trends import lines_of

app = typer.Typer(help="An index of runs in SQLite, and what changed from one to the next.", no_args_is_help=True)

Database = Annotated[Path, typer.Option("--db", help="the database; it is made where it is not there", metavar="FILE")]
_WIDTH = 120  # of the table, at least


@app.command(no_args_is_help=True)
def add(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs, or their records.jsonl", metavar="RUN…")],
    db: Database = Path(HISTORY),
    replace: Annotated[
        bool, typer.Option("--replace", help="take over runs that changed since they were added")
    ] = False,
) -> None:
    """Add runs to the index; one that stands there already is not added twice.

    Exits with 1 where a run cannot be trusted, or is not what was added under its name; the others are added.

    Example:
        rwkv-tpu history add runs/* --db runs/history.sqlite
    """
    failed = False
    with History(db) as history:
        for run in runs:
            try:
                added = history.add(run, replace=replace)
            except RecordsError as error:
                typer.echo(f"error: {error}", err=True)
                failed = True
            except OSError as error:
                typer.echo(f"error: {run}: should be a run's folder, or its records, but {error.strerror}", err=True)
                failed = True
            else:
                typer.echo(f"{run}: {added.value}")
                failed = failed or added is Added.CHANGED
    if failed:
        raise typer.Exit(1)


@app.command()
def show(db: Database = Path(HISTORY)) -> None:
    """List the runs in the index, and how many cases changed in each; the page shows which and how."""
    _must_exist(db)
    table = Table("started", "run", "target", "TPU-MLIR", "checkpoint", "cases", "ended", "cases changed")
    with History(db) as history:
        for line in lines_of(history.runs()):
            for step in line.steps:
                run = step.run
                table.add_row(
                    run.started,
                    run.id,
                    run.target,
                    run.origin.get("toolchain.version", "?"),
                    run.origin.get("checkpoint.name", "?"),
                    str(len([name for name in run.cases if name])),
                    "interrupted" if run.interrupted else f"exit status {run.exit_status}",
                    "" if run.interrupted else str(len(step.cases)),
                    style="yellow" if run.interrupted or step.cases else None,
                )
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table)


@app.command()
def page(
    folder: Annotated[Path, typer.Argument(help=f"where {HISTORY} is: a nightly's folder", metavar="FOLDER")],
) -> None:
    """Write the index as a page, FOLDER/index.html: the course of each case, and the first run after each change."""
    _must_exist(folder / HISTORY)
    with History(folder / HISTORY) as history:
        write_history(history.runs(), folder / PAGE)
    typer.echo(str(folder / PAGE))


def _must_exist(db: Path) -> None:
    if not db.is_file():
        raise typer.BadParameter(f"no history in {db}: rwkv-tpu history add RUN… --db {db} makes one")
