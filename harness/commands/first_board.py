"""``rwkv-tpu first-board``: what to run when a board is there for the first time."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from compile.release import DEFAULT_RELEASE
from compile.toolchain import find
from harness.paths import cache_folder


def first_board(
    number: Annotated[int, typer.Argument(min=0, help="the board's number", metavar="N")] = 0,
    libsophon: Annotated[
        Path | None, typer.Option(help="the board's libsophon, where it is not in /opt/sophon", metavar="DIR")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="a new folder for what is found", metavar="DIR")] = None,
    toolchain: Annotated[
        str, typer.Option(help="installed TPU-MLIR release to compile with", metavar="VERSION")
    ] = DEFAULT_RELEASE,
) -> None:
    """Try everything that has never met hardware, the harmless first, and stop at the first surprise.

    From looking at files to a hundred steps of a small model, compared with the reference. What each step finds is
    written to a folder and packed; please send the archive to us, whichever way it ends. It holds versions, logs and
    figures, and no names of users or machines. Exits with 1 where there was a surprise.

    Examples:
        rwkv-tpu first-board

        rwkv-tpu stand-in stand-in/ && rwkv-tpu first-board 0 --libsophon stand-in/
    """
    from harness.checkpoints import open_model
    from harness.device.first_contact import Contact, run_first_contact

    folder = out or Path(f"first-board-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    if folder.exists():
        raise typer.BadParameter(f"{folder} is there already: name a new folder")
    contact = Contact(
        number=number,
        libsophon=libsophon,
        toolchain=find(toolchain, cache_folder()),
        model=open_model(None),
        say=typer.echo,
    )
    outcome = run_first_contact(contact, folder)
    if outcome.failed is None:
        typer.echo(f"\nno surprise. Please send {outcome.archive} all the same: it is evidence")
        return
    typer.echo(f"\nstopped at step {outcome.failed!r}; nothing after it was tried. Please send {outcome.archive}")
    raise typer.Exit(1)
