"""``rwkv-tpu bench-compile``: the rows that must not get slower, compiled and compared with their targets and bests."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compile.compiler import STAGE_TIMEOUT_S
from compile.release import DEFAULT_RELEASE
from compile.toolchain import find
from harness.bench_compile import Result, bench_compile, passed
from harness.bench_report import (
    NARROW_HEADINGS,
    NARROW_STORAGE_HEADINGS,
    NOTE,
    STORAGE_NOTE,
    narrow_cells,
    narrow_storage_cells,
    to_json,
    to_markdown,
)
from harness.commands.options import StageTimeout, ToolchainVersion
from harness.compile_rows import ROWS, Row, read_rows, record, write_rows
from harness.paths import cache_folder

DOCS = Path(__file__).parent.parent.parent / "docs"
_WIDTH = 80  # of the tables, at least: a figure that is cut cannot be read
_FIGURES_WIDTH = 14  # of a column with them, at most: what is longer is broken, not cut


def run_bench_compile(
    only: Annotated[
        str | None, typer.Option(help="only rows whose name has this in it; * stands for anything", metavar="PATTERN")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--record", help="keep what was reached as the best, where it is the best so far")
    ] = False,
    toolchain: ToolchainVersion = DEFAULT_RELEASE,
    stage_timeout: StageTimeout = STAGE_TIMEOUT_S,
    loop: Annotated[
        bool, typer.Option("--loop", help="compile the plain loop over tokens too, where that takes minutes only")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="folder for performance-rows.json and .md; all rows go to docs/ without it",
            metavar="DIR",
        ),
    ] = None,
    rows_file: Annotated[Path, typer.Option("--rows", help="another file of rows", metavar="FILE")] = ROWS,
) -> None:
    """Compile what the project wants to be fast, and show what the compiler predicts of it.

    Rows that are in the cache cost seconds; one of a 0.1B model takes minutes and 8 GB of memory, and they are compiled
    one after the other. A killed run goes on where it was. Exits with 1 where a row does not compile or is slower than
    its recorded best by more than 1 %; a missed target is shown, and no failure.

    Examples:
        rwkv-tpu bench-compile

        rwkv-tpu bench-compile --only 'decode-W4F16' --loop

        rwkv-tpu bench-compile --record
    """
    every = read_rows(rows_file)
    wanted = [row for row in every if only is None or fnmatchcase(row.id, f"*{only}*")]
    if not wanted:
        raise typer.BadParameter(f"no row has {only!r} in it; there are: {', '.join(row.id for row in every)}")
    compiler = find(toolchain, cache_folder())
    results = list(bench_compile(wanted, compiler, loop=loop, say=typer.echo, timeout_s=stage_timeout))
    _print(results, f"milliseconds, predicted by TPU-MLIR {compiler.version}, no measurement")
    if only is None or out is not None:
        folder = out or DOCS
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "performance-rows.json").write_bytes(to_json(results, compiler))
        (folder / "performance-rows.md").write_text(to_markdown(results, compiler))
        typer.echo(f"tables: {folder / 'performance-rows.json'} and .md")
    if keep:
        _record(every, results, compiler.version, rows_file)
    if not passed(results):
        raise typer.Exit(1)


def _record(every: tuple[Row, ...], results: list[Result], release: str, path: Path) -> None:
    reached = {result.row.id: result.cycles for result in results if result.cycles is not None}
    rows = record(every, reached, release)
    write_rows(rows, path)
    new = sum(before.best != after.best for before, after in zip(every, rows, strict=True))
    typer.echo(f"{new} new best in {path}")


def _print(results: list[Result], title: str) -> None:
    console = Console(width=max(Console().width, _WIDTH))
    console.print(_table(title, NARROW_HEADINGS, [narrow_cells(result) for result in results]))
    console.print(escape(NOTE))
    stored = [found for result in results if (found := narrow_storage_cells(result))]
    console.print()
    console.print(_table("what stays more precise than the name says", NARROW_STORAGE_HEADINGS, stored))
    console.print(escape(STORAGE_NOTE))


def _table(title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, box=SIMPLE, title_justify="left", padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", overflow="fold", max_width=_FIGURES_WIDTH)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
