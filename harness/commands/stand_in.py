"""``rwkv-tpu stand-in``: a folder that takes a board's place where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compile.release import DEFAULT_RELEASE
from compile.toolchain import find
from harness.device.stand_in import make_stand_in
from harness.paths import cache_folder


def stand_in(
    folder: Annotated[Path, typer.Argument(help="a new folder", metavar="DIR")],
    toolchain: Annotated[
        str, typer.Option(help="the TPU-MLIR release whose simulator it points at", metavar="VERSION")
    ] = DEFAULT_RELEASE,
) -> None:
    """Make a folder laid out like libsophon's that points at the simulator's libraries.

    With it the whole way of a board can be tried without one. Records and reports say that it is the simulator.

    Examples:
        rwkv-tpu stand-in stand-in/

        pytest suites/ --device 0 --libsophon stand-in/ --grid smoke

        rwkv-tpu first-board 0 --libsophon stand-in/
    """
    make_stand_in(folder, find(toolchain, cache_folder()).libraries)
    typer.echo(f"{folder}: a stand-in for board 0; use it with --device 0 --libsophon {folder}")
