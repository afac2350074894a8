"""``rwkv-tpu profile``: what the compiler predicts of a case, instruction by instruction, and how far it is off."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from compile.compiler import STAGE_TIMEOUT_S
from compile.release import DEFAULT_RELEASE
from compile.sweep import sweep
from compile.timeline import GroupBy, costs
from compile.toolchain import find
from harness.cases import parse_case
from harness.commands.options import (
    Checkpoint,
    Size,
    StageTimeout,
    ToolchainVersion,
    check_file,
    check_model,
    model_of,
)
from harness.paths import cache_folder
from harness.profiles import CaseProfile, facts, profile_case, profile_file, view
from harness.rates import RATES, keep_rates
from reports.timeline_page import write_timeline_page, write_trace


def profile(
    case: Annotated[
        str | None,
        typer.Argument(help="a case's id, such as decode-F16-chunk or prefill_64-W4F16-chunk", metavar="CASE"),
    ] = None,
    checkpoint: Checkpoint = None,
    size: Size = None,
    toolchain: ToolchainVersion = DEFAULT_RELEASE,
    stage_timeout: StageTimeout = STAGE_TIMEOUT_S,
    file: Annotated[
        Path | None, typer.Option(help="a compiler_profile_0.txt, in place of a case", metavar="FILE")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="another case of the same model, to be shown beside", metavar="CASE")
    ] = None,
    against_file: Annotated[
        Path | None, typer.Option(help="the same, a compiler_profile_0.txt", metavar="FILE")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="write the timelines as one page, with zoom", metavar="OUT")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="write them as trace events, which Perfetto opens", metavar="OUT")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="how many of the dearest operations to print", metavar="N")] = 20,
    run_sweep: Annotated[
        bool, typer.Option("--sweep", help="find the rate that floors are made with, keep it, and stop")
    ] = False,
) -> None:
    """Show the compiler's predicted timeline of a case, what is dearest in it, and how far it is from the floor.

    The case is compiled if it is not in the cache. Every time is a prediction, one cycle a nanosecond; nothing here is
    a measurement. The floor is the time that the least bytes take at the best rate of any matrix-vector product, or
    the operations at 16 TFLOPS, whichever is longer.

    Examples:
        rwkv-tpu profile decode-F16-chunk --html timeline.html

        rwkv-tpu profile decode-F16-chunk --size 0.1B --against decode-W4F16-chunk --html both.html

        rwkv-tpu profile --file compiler_profile_0.txt --against-file old/compiler_profile_0.txt

        rwkv-tpu profile --sweep --toolchain 1.28.1
    """
    if run_sweep:
        _sweep(toolchain, stage_timeout)
        return
    if (case is None) == (file is None):
        raise typer.BadParameter("name a CASE, such as decode-F16-chunk, or a --file, and not both")
    if against is not None and against_file is not None:
        raise typer.BadParameter("--against and --against-file exclude each other")
    check_model(checkpoint, size)
    check_file(html, "--html")
    check_file(trace, "--trace")
    # Ids are read first: a typing mistake must not wait for a compile.
    cases = [None if one is None else parse_case(one) for one in (case, against)]
    profiles = [None if one is None else profile_file(one) for one in (file, against_file)]
    if any(cases):
        compiler = find(toolchain, cache_folder())
        model = model_of(checkpoint, size)
        profiles = [
            read if one is None else profile_case(one, model, compiler, say=typer.echo, timeout_s=stage_timeout)
            for one, read in zip(cases, profiles, strict=True)
        ]
    _show([one for one in profiles if one is not None], top, html, trace)


def _show(profiles: list[CaseProfile], top: int, html: Path | None, trace: Path | None) -> None:
    """Print them, and write what was asked for."""
    _print(profiles, top)
    views = [view(one) for one in profiles] if html or trace else []
    if html:
        write_timeline_page(views, html)
        typer.echo(f"timelines: {html}")
    if trace:
        write_trace(views, trace)
        typer.echo(f"trace events: {trace}")


def _sweep(version: str, stage_timeout_s: float) -> None:
    """Compile the products, keep what they show."""
    toolchain = find(version, cache_folder())
    rates = keep_rates(toolchain, sweep(toolchain, say=typer.echo, timeout_s=stage_timeout_s))
    table = Table("inputs", "outputs", "precision", "least bytes", "predicted cycles", "GB/s", box=SIMPLE)
    for one in rates.products:
        what = str(one.inputs), str(one.outputs), one.quantization.value
        table.add_row(*what, f"{one.minimum_bytes:,}", f"{one.predicted_cycles:,}", f"{one.bytes_per_ns:.2f}")
    Console().print(table)
    typer.echo(f"best predicted rate: {rates.best.bytes_per_ns:.2f} GB/s; kept in {RATES}")


def _print(profiles: list[CaseProfile], top: int) -> None:
    """Figures side by side, then the dearest operations of each."""
    console = Console()
    table = Table("predicted, no measurement", box=SIMPLE)
    columns = [dict(facts(one)) for one in profiles]
    for one in profiles:
        table.add_column(one.title, justify="right", overflow="fold")
    for word in dict.fromkeys(word for column in columns for word in column):
        table.add_row(word, *(column.get(word, "") for column in columns))
    console.print(table)
    if any(one.floor is None for one in profiles):
        why = "a --file does not tell its model, and a release needs `rwkv-tpu profile --sweep` once"
        console.print(f"No floor is known everywhere: {why}.", soft_wrap=True)
    for one in profiles:
        console.print(_dearest(one, GroupBy.KIND, top))
        console.print(_dearest(one, GroupBy.NAME, top))


def _dearest(one: CaseProfile, by: GroupBy, top: int) -> Table:
    what = "operations, summed over the layers" if by is GroupBy.NAME else "kinds of operation"
    table = Table(title=f"dearest {what}: {one.title} (predicted cycles)", box=SIMPLE, title_justify="left")
    table.add_column("operation", no_wrap=True)
    if by is GroupBy.NAME:
        table.add_column("name", overflow="fold")
    for heading in ("count", "cycles", "TIU", "GDMA", "alone", "bytes", "GB/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    found = costs(one.timeline, by)
    for cost in found[:top]:
        figures = (cost.instructions, cost.cycles, cost.tiu_cycles, cost.gdma_cycles, cost.alone_cycles, cost.bytes)
        rate = f"{cost.bytes_per_ns:.1f}" if cost.gdma_cycles else ""
        names = (cost.operation, cost.name) if by is GroupBy.NAME else (cost.operation,)
        table.add_row(*names, *(f"{figure:,}" for figure in figures), rate)
    if len(found) > top:
        table.caption = f"and {len(found) - top} more: --top N"
    return table
