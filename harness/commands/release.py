"""``rwkv-tpu release``: a new compiler release beside an old one, in one command."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Annotated

import typer

from compile.install import install
from compile.toolchain import Toolchain, ToolchainError
from harness.asked_folder import QuestionError, WorkingError
from harness.cases import GridError
from harness.gate.finding import Kind
from harness.gate.rules import RulesError, load_rules
from harness.launches import LaunchError
from harness.nightly.suites import suites_command
from harness.paths import cache_folder
from harness.release import Plan, compare_releases

BOARD_LAUNCHES = 10
_CMODEL = "cmodel"
_OURS = ("--toolchain", "--runs", "--grid", "--device")


class ArgumentError(ValueError):
    """An option behind ``--`` that a command sets itself."""


def release(
    new: Annotated[str, typer.Argument(help="the TPU-MLIR release that is judged", metavar="NEW")],
    against: Annotated[str, typer.Option(help="the release that it is compared with", metavar="OLD")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="options of pytest suites/, behind --", metavar="[-- OPTION…]")
    ] = None,
    grid: Annotated[str, typer.Option(help="which graphs, as with pytest suites/", metavar="NAME|FILE")] = "release",
    device: Annotated[
        str, typer.Option(help="where bmodels run, as with pytest suites/", metavar="cmodel|N|ssh://…")
    ] = _CMODEL,
    launches: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"run each side so often, in turns (default: {BOARD_LAUNCHES} on a board, 1 on the simulator)",
            metavar="COUNT",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="where runs and report go (default: runs/release-NEW-against-OLD)",
            metavar="FOLDER",
            show_default=False,
        ),
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="rules of the gate that stand before those of suites/gate.toml", metavar="FILE")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="a difference that the gate accepts; can be repeated", metavar="NAME")
    ] = None,
) -> None:
    """Install both releases, run the grid with each, report them side by side, and say whether NEW is worse.

    The exit code is the gate's. 0: pass. 1: a regression. 2: stale expectations. 3: nothing measured, or not
    comparable; a mistake in usage; a folder that was asked something else. 4: device or infrastructure; a release that
    cannot be installed; interrupted. Where it was interrupted or killed, the same command goes on in the same folder: a
    run that came to its end is not made again.

    Examples:
        rwkv-tpu release 1.30.2 --against 1.28.1 --grid smoke

        rwkv-tpu release 1.30.2 --against 1.28.1 --device 0 --launches 20 --out compared -- --checkpoint rwkv7.pth
    """
    folder = out or Path("runs") / f"release-{new}-against-{against}"
    try:
        check_arguments(arguments or [])
        plan = Plan(
            folder=folder,
            old=against,
            new=new,
            grid=grid,
            device=device,
            arguments=arguments or [],
            command=suites_command,
            install=install_and_say,
            cache=cache_folder(),
            launches=launches or (1 if device == _CMODEL else BOARD_LAUNCHES),
            rules=load_rules(rules),
            allow=allow or [],
            say=typer.echo,
        )
        code = compare_releases(plan)
    except (ArgumentError, RulesError, GridError, QuestionError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(Kind.NOT_COMPARABLE.exit_code) from error
    except LaunchError as error:
        typer.echo(f"error: {error}\nOnce that is repaired, the same command goes on in {folder}", err=True)
        raise typer.Exit(error.kind.exit_code) from error
    except (ToolchainError, WorkingError, OSError, sqlite3.Error) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(Kind.INFRA.exit_code) from error
    except KeyboardInterrupt:
        typer.echo(f"interrupted: the same command goes on in {folder}", err=True)
        raise typer.Exit(Kind.INFRA.exit_code) from None
    raise typer.Exit(code)


def check_arguments(arguments: list[str], ours: tuple[str, ...] = _OURS) -> None:
    """Refuse options of the suites that a command sets itself: given twice, the last one would count.

    Raises:
        ArgumentError: one of them.
    """
    for one in arguments:
        if one.partition("=")[0] in ours:
            raise ArgumentError(f"{one} stands behind --, but is set by this command; leave it out there")


def install_and_say(version: str) -> Toolchain:
    """A release's toolchain, with lines of progress where it has to be installed.

    Raises:
        ToolchainError: it cannot be.
    """
    return install(version, cache_folder(), say=lambda line: typer.echo(f"toolchain {version}: {line}"))
