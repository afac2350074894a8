"""``rwkv-tpu bundle``: a folder with all that a deployer needs of a case."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compile.release import DEFAULT_RELEASE
from compile.toolchain import ToolchainError, find
from harness.cases import CaseError, parse_case
from harness.paths import cache_folder


def bundle(
    case: Annotated[str, typer.Argument(help="the case's id, such as prefill_16-F16-chunk", metavar="CASE")],
    out: Annotated[Path | None, typer.Option(help="the folder (default: bundles/CASE)", metavar="DIR")] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="take the verdicts of this run's records along (default: the latest in --runs of the same bmodels)",
            metavar="RUN",
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(help="where runs are", metavar="DIR")] = Path("runs"),
    checkpoint: Annotated[
        Path | None, typer.Option(help="the checkpoint (default: the one that ships)", metavar="PATH")
    ] = None,
    toolchain: Annotated[str, typer.Option(help="installed TPU-MLIR release", metavar="VERSION")] = DEFAULT_RELEASE,
) -> None:
    """Write a folder with the bmodels of CASE, of its decode graph too, and all that goes with them.

    It has the codec, a map of inputs and outputs, hashes, versions, verdicts and a self-test that needs nothing but
    Python 3.8 and the vendor's libraries (docs/bundle.md).

    Example:
        rwkv-tpu bundle prefill_16-F16-chunk --run runs/20261120T150337.388138Z-cmodel
        python3 bundles/prefill_16-F16-chunk/selftest.py
    """
    from compile.compiler import CompileError
    from harness.bundle.make import Request, make_bundle, with_decode
    from harness.bundle.verdicts import BundleError
    from harness.checkpoints import open_model
    from harness.jobs import compile_case
    from reference.shape import CheckpointError
    from reports.schema import RecordsError

    console = Console(stderr=True, highlight=False)
    try:
        parsed = parse_case(case)
        found = find(toolchain, cache_folder())
        model = open_model(checkpoint)
        request = Request(with_decode(parsed), model, found, run, runs)
        folder = make_bundle(
            request,
            out or Path("bundles") / parsed.id,
            lambda one: compile_case(
                one, model, found, cache_folder(), say=lambda text: console.print(text, markup=False)
            ),
            say=lambda text: console.print(text, markup=False, soft_wrap=True),
        )
    except (CaseError, ToolchainError, CheckpointError, BundleError, CompileError, RecordsError, OSError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error
    typer.echo(folder)
