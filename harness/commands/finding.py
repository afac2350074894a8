"""``rwkv-tpu finding``: a fault of TPU-MLIR, shown by the smallest graph that has it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from compile.release import DEFAULT_RELEASE
from compile.toolchain import find
from harness.paths import cache_folder


def finding(
    name: Annotated[str, typer.Argument(help="as in docs/findings/; 'all' for every one", metavar="NAME")],
    toolchain: Annotated[str, typer.Option(help="an installed TPU-MLIR release", metavar="VERSION")] = DEFAULT_RELEASE,
    keep: Annotated[
        Path | None, typer.Option(help="copy model.onnx, inputs and logs to this new folder", metavar="DIR")
    ] = None,
) -> None:
    """Compile a fault's graph, compute it at every arrow, and show what was expected and what came out.

    Examples:
        rwkv-tpu finding trilu_diagonal

        rwkv-tpu finding relu_dropped_w8bf16 --toolchain 1.28.1 --keep relu/
    """
    from harness.findings.catalogue import all_reproducers
    from harness.findings.reproducer import reproduce, told
    from harness.ops.press import Press
    from runtime.libraries import Libraries

    reproducers = all_reproducers()
    if name != "all" and name not in reproducers:
        raise typer.BadParameter(f"no reproducer is called {name!r}; there are {', '.join(reproducers)}")
    tools = find(toolchain, cache_folder())
    with Press(tools, Libraries.cmodel(tools.libraries)) as press:
        for reproducer in reproducers.values() if name == "all" else [reproducers[name]]:
            typer.echo(f"{reproducer.name}, TPU-MLIR {tools.compiler_commit}, --quantize {reproducer.quantize}")
            shown = reproduce(reproducer, press)
            typer.echo(told(reproducer, shown))
            if keep is not None:
                shutil.copytree(shown.folder, keep if name != "all" else keep / reproducer.name)
