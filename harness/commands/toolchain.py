"""``rwkv-tpu toolchain``: install, list and check TPU-MLIR releases."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from compile import install as installer
from compile import toolchain as toolchains
from compile.passes import passes
from compile.release import DEFAULT_RELEASE
from compile.tool_options import TOOLS, What, changes, tool_options
from harness.paths import cache_folder

app = typer.Typer(help="TPU-MLIR releases, each in an environment of its own.", no_args_is_help=True)

Version = Annotated[str, typer.Argument(help="a TPU-MLIR release", metavar="VERSION")]


@app.command()
def install(
    version: Version = DEFAULT_RELEASE,
    wheel: Annotated[Path | None, typer.Option(help="a wheel file of this release, in place of the registry's")] = None,
) -> None:
    """Install a release and prove it with a tiny compile; does nothing where that was done before."""
    installer.install(version, cache_folder(), wheel=wheel, say=lambda line: typer.echo(f"toolchain {version}: {line}"))


@app.command("list")
def list_() -> None:
    """Show what is installed, half-made installs included."""
    table = Table("release", "compiler", "folder")
    for found in toolchains.installed(cache_folder()):
        if isinstance(found, toolchains.HalfMade):
            table.add_row(found.version, f"half-made: {found.reason}", str(found.root))
        else:
            table.add_row(found.version, found.compiler_commit, str(found.root))
    Console().print(table)


@app.command(no_args_is_help=True)
def diff(
    old: Annotated[str, typer.Argument(help="an installed release", metavar="OLD")],
    new: Annotated[str, typer.Argument(help="another", metavar="NEW")],
    words: Annotated[bool, typer.Option("--words", help="show what is only described otherwise, too")] = False,
) -> None:
    """Show which options of the tools, passes and defaults are not the same in two installed releases.

    Options are what the tools say of themselves and what their files declare; passes are what the release describes.
    What a release does not tell is said, and the rest compared.

    Examples:
        rwkv-tpu toolchain diff 1.28.1 1.30.2
    """
    sides = [toolchains.find(version, cache_folder()) for version in (old, new)]
    table = Table("of", "what", "became", old, new)
    untold = []
    readers = {tool: partial(tool_options, tool=tool) for tool in TOOLS} | {"passes": passes}
    for source, read in readers.items():
        try:
            before, after = (read(side) for side in sides)
        except toolchains.ToolchainError as error:
            untold.append(f"{source} cannot be compared: {error}")
            continue
        for change in changes(before, after):
            if words or change.what is not What.HELP:
                table.add_row(source, change.name, change.what.value, change.old, change.new)
    Console().print(table)
    for line in untold:
        typer.echo(line)


@app.command()
def check(version: Version = DEFAULT_RELEASE) -> None:
    """Compare an install with what was installed, and compile something tiny; exits with 1 where it is broken."""
    problems = toolchains.check(toolchains.find(version, cache_folder()))
    for problem in problems:
        typer.echo(problem)
    if problems:
        typer.echo(f"\ntoolchain {version} is broken: remove its folder and install it again")
        raise typer.Exit(1)
    typer.echo(f"toolchain {version} is as installed, and compiles")
