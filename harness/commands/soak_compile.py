"""``rwkv-tpu soak-compile``: sizes and precisions through the compiler, and the table of what became of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compile.compiler import STAGE_TIMEOUT_S
from compile.release import DEFAULT_RELEASE
from compile.spec import Quantization
from compile.toolchain import find
from harness.cases import Case, CaseError, parse_case
from harness.commands.options import StageTimeout, ToolchainVersion
from harness.paths import cache_folder
from harness.sizes import BY_BLOCK, SIZES

_GRAPHS = "decode,prefill_64"
_SIZES = ",".join((*SIZES, *BY_BLOCK))
_PRECISIONS = ",".join(quantization.value for quantization in Quantization)


def soak_compile(
    sizes: Annotated[str, typer.Option(help="published sizes, with commas between", metavar="NAMES")] = _SIZES,
    precisions: Annotated[str, typer.Option(help="with commas between", metavar="NAMES")] = _PRECISIONS,
    graphs: Annotated[str, typer.Option(help="decode, prefill_T, with commas between", metavar="NAMES")] = _GRAPHS,
    one_block: Annotated[
        bool,
        typer.Option(
            "--one-block", help="compile embedding, first and middle layer, and head; count the middle one for the rest"
        ),
    ] = False,
    blocks: Annotated[
        bool | None,
        typer.Option(
            "--blocks/--whole", help="part by part, or as a whole; else whole where its compile fits into --memory"
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="compiles at a time", metavar="N")] = 1,
    memory: Annotated[float, typer.Option(min=1, help="for all of them together", metavar="GIB")] = 12.0,
    toolchain: ToolchainVersion = DEFAULT_RELEASE,
    stage_timeout: StageTimeout = STAGE_TIMEOUT_S,
    table: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="file of rows, with the page beside it; docs/soak-compile.json without it"),
    ] = None,
) -> None:
    """Compile the grid of sizes and precisions, and keep what became of it in docs/soak-compile.md.

    What is in the cache costs seconds, so that a killed run goes on where it was; rows of earlier runs stay in the
    table. A size whose whole graph would take the compiler more than --memory is compiled part by part.

    Examples:
        rwkv-tpu soak-compile --one-block

        rwkv-tpu soak-compile --sizes 2.9B --precisions F16,W4F16 --jobs 2
    """
    points = [
        (size, _case(graph, precision))
        for size in _names(sizes, _SIZES, "--sizes")
        for precision in _names(precisions, _PRECISIONS, "--precisions")
        for graph in _names(graphs, "", "--graphs")
    ]
    if one_block and blocks is False:
        raise typer.BadParameter("--one-block is part by part, and --whole is not")
    compiler = find(toolchain, cache_folder())

    from harness.soak import TABLE, Road, keep, soak
    from harness.soak_report import to_markdown

    road = Road.ONE_BLOCK if one_block else None if blocks is None else Road.BLOCKS if blocks else Road.WHOLE
    path = table or TABLE
    failed = False
    for point in points:  # one by one, so that a killed run has left its rows
        rows = soak(
            [point],
            compiler,
            road,
            workers=jobs,
            memory_bytes=int(memory * 2**30),
            timeout_s=stage_timeout,
            say=typer.echo,
        )
        path.with_suffix(".md").write_text(to_markdown(keep(rows, path)))
        failed = failed or any(row.error for row in rows)
    typer.echo(f"table: {path.with_suffix('.md')}")
    if failed:
        raise typer.Exit(1)


def _names(text: str, known: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if known and name not in known.split(",")]
    if wrong or not names:
        found = repr(wrong[0]) if wrong else "empty"
        raise typer.BadParameter(f"{option} is {found}, but should be some of {known or _GRAPHS}")
    return names


def _case(graph: str, precision: str) -> Case:
    try:
        return parse_case(f"{graph}-{precision}-chunk")
    except CaseError as error:
        raise typer.BadParameter(str(error)) from error
