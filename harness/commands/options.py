"""What several commands take, declared once: the same name, help and check everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.checkpoints import Model, open_model
from harness.sizes import SIZES, model_of_size
from harness.stage_timeout import HELP, LEAST_S, MOST_S

Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="a checkpoint of any container, in place of the one that ships", metavar="FILE"),
]
Size = Annotated[
    str | None, typer.Option("--size", help=f"a synthetic one of a published size: {', '.join(SIZES)}", metavar="SIZE")
]
ToolchainVersion = Annotated[
    str, typer.Option("--toolchain", help="the TPU-MLIR release that compiles", metavar="VERSION")
]
StageTimeout = Annotated[float, typer.Option("--stage-timeout", min=LEAST_S, max=MOST_S, help=HELP, metavar="SECONDS")]


def check_model(checkpoint: Path | None, size: str | None) -> None:
    """Refuse what names no model, before anything takes time.

    Raises:
        typer.BadParameter: a size that there is not, or both.
    """
    if size is not None and (checkpoint is not None or size not in SIZES):
        raise typer.BadParameter(f"--size is one of {', '.join(SIZES)}, and takes the place of --checkpoint")


def model_of(checkpoint: Path | None, size: str | None) -> Model:
    """The model that both name together; see :func:`check_model`.

    Raises:
        CheckpointError: the file is not an RWKV-7 checkpoint.
    """
    return open_model(checkpoint) if size is None else model_of_size(size)


def check_file(path: Path | None, option: str) -> None:
    """Refuse a file that cannot be written, before minutes of compiling.

    Raises:
        typer.BadParameter: it is a folder, or there is none for it to lie in.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        found = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise typer.BadParameter(f"{option} {path}: should be a file in a folder that exists, but {found}")
