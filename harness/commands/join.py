"""``rwkv-tpu join``: decode and prefill of a model in one bmodel."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from compile.compiler import STAGE_TIMEOUT_S
from compile.release import DEFAULT_RELEASE
from compile.toolchain import find
from harness.cases import parse_case
from harness.commands.options import Checkpoint, StageTimeout, ToolchainVersion, check_file
from harness.paths import cache_folder
from harness.sizes import BY_BLOCK, SIZES


def join(
    cases: Annotated[
        list[str],
        typer.Argument(
            help="ids, such as decode-F16-chunk+blocks prefill_64-F16-chunk+blocks: +blocks compiles part by part",
            metavar="CASE...",
        ),
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="the bmodel", metavar="FILE")],
    checkpoint: Checkpoint = None,
    size: Annotated[
        str | None,
        typer.Option(help=f"a synthetic one of a published size: {', '.join((*SIZES, *BY_BLOCK))}", metavar="SIZE"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="compiles at a time", metavar="N")] = 1,
    memory: Annotated[float, typer.Option(min=1, help="for all of them together", metavar="GIB")] = 12.0,
    as_json: Annotated[bool, typer.Option("--json", help="the figures as JSON")] = False,
    toolchain: ToolchainVersion = DEFAULT_RELEASE,
    stage_timeout: StageTimeout = STAGE_TIMEOUT_S,
) -> None:
    """Compile several graphs of one model, and put them into one bmodel.

    Tensors are read, or made, as each part needs them; parts that are in the cache are not compiled again. Tells what
    the bmodel takes on the device, and which of its coefficients are there for several graphs.

    Examples:
        rwkv-tpu join decode-F16-chunk+blocks prefill_64-F16-chunk+blocks --out tiny.bmodel

        rwkv-tpu join decode-W4F16-chunk+blocks --size 7.2B --jobs 2 --memory 12 --out 7b.bmodel
    """
    chosen = [parse_case(case) for case in cases]
    check_file(out, "--out")
    if size is not None and (checkpoint is not None or size not in {*SIZES, *BY_BLOCK}):
        raise typer.BadParameter(
            f"--size is one of {', '.join((*SIZES, *BY_BLOCK))}, and takes the place of --checkpoint"
        )
    if len({case.net for case in chosen}) != len(chosen):
        raise typer.BadParameter(f"{', '.join(cases)}: two of them would be nets of the same name")
    compiler = find(toolchain, cache_folder())

    import msgspec

    from harness.checkpoints import DEFAULT
    from harness.one_bmodel import one_bmodel, sharing
    from harness.weights import weights_of_file, weights_of_size

    weights = weights_of_file(checkpoint or DEFAULT) if size is None else weights_of_size(size)
    made = one_bmodel(
        chosen,
        weights,
        compiler,
        cache_folder(),
        workers=jobs,
        memory_bytes=int(memory * 2**30),
        say=lambda line: typer.echo(line, err=as_json),
        timeout_s=stage_timeout,
    )
    shutil.copyfile(made.path, out)
    device, shared = sharing(made.path, chosen, weights.shape.n_layer, compiler)
    if as_json:
        figures = {
            "bmodel": str(out),
            "compiled": made.result,
            "device": device,
            "coefficients": shared,
            "shared_bytes": shared.shared,
            "duplicated_bytes": shared.duplicated,
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(figures), indent=2).decode())
        return
    typer.echo(
        f"{out}: {made.result.bmodel_bytes / 1e6:.1f} MB; on the device {device.total / 1e6:.1f} MB: coefficients "
        f"{device.coefficients / 1e6:.1f}, instructions {device.instructions / 1e6:.1f}, run time "
        f"{device.runtime / 1e6:.1f}\n"
        f"coefficients: {shared.shared / 1e6:.1f} MB shared between nets, {shared.duplicated / 1e6:.1f} MB there twice,"
        " laid out for another graph"
    )
