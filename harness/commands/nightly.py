"""``rwkv-tpu nightly``: run the suites, judge them against the last good night, keep the page."""

from __future__ import annotations

import argparse
import json
import sqlite3
import traceback
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from compile.release import DEFAULT_RELEASE
from compile.toolchain import ToolchainError, look_up
from harness.cases import GridError, load_grid
from harness.commands.gate import GateCommand
from harness.gate.finding import Kind
from harness.gate.rules import RulesError, load_rules
from harness.manifest import git_state
from harness.nightly.night import BusyError, Plan, spend
from harness.nightly.night import accept as accept_night
from harness.nightly.nights import NightError
from harness.nightly.suites import suites_command
from harness.paths import cache_folder
from reports.history import HistoryError

ERRORS = "error.log"
"""In the folder of nights: tracebacks of errors that nothing here foresees."""


class NightlyCommand(GateCommand):
    """As the gate: a mistake in usage ends with 3."""


def nightly(
    folder: Annotated[Path, typer.Argument(help="where all nights are; it is made", metavar="FOLDER")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="options of pytest suites/, behind --", metavar="[-- OPTION…]")
    ] = None,
    grid: Annotated[str, typer.Option(help="which graphs, as with pytest suites/", metavar="NAME|FILE")] = "nightly",
    launches: Annotated[
        int, typer.Option(min=1, help="run the suites so often: times on a board need ten", metavar="COUNT")
    ] = 1,
    keep: Annotated[int | None, typer.Option(min=1, help="let the latest COUNT nights stay", metavar="COUNT")] = None,
    keep_days: Annotated[
        float | None, typer.Option(min=0, help="let nights stay for so many days", metavar="DAYS")
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="rules of the gate that stand before those of suites/gate.toml", metavar="FILE")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="a difference that the gate accepts; can be repeated", metavar="NAME")
    ] = None,
    first_night_passes: Annotated[
        bool,
        typer.Option("--first-night-passes", help="end with 0, not 3, where there is no night yet to judge it against"),
    ] = False,
    accept: Annotated[
        str | None, typer.Option(help="run nothing: make this night the baseline of those to come", metavar="NIGHT")
    ] = None,
) -> None:
    """Run the suites into FOLDER, judge them against its last good night, and write FOLDER/index.html.

    The exit code is the gate's. 0: pass. 1: a regression. 2: stale expectations. 3: nothing measured, or not
    comparable; so is the first night, which becomes the baseline. 4: device or infrastructure; so is a folder in which
    another nightly works, a night that was interrupted, and a fault of the harness itself, whose traceback is then in
    FOLDER/error.log.

    However a night is stopped, the same command goes on with it: finished checks and launches are not made again. Where
    anything was changed, the options, the toolchain or the harness's commit, another night begins, and the interrupted
    one stays.

    Nights are removed only where --keep or --keep-days says so; never the baseline, the latest, or one that still runs.
    Their figures stay in FOLDER/history.sqlite, and on the page.

    Examples:
        rwkv-tpu nightly nightly/ --keep 60

        rwkv-tpu nightly nightly/ --grid smoke -- --checkpoint rwkv7.pth -k "not throughput"

        rwkv-tpu nightly nightly/ --accept 20261120T030000.000000Z
    """
    try:
        if accept is not None:
            night = accept_night(folder, accept)
            typer.echo(f"{night.name} is the baseline now")
            return
        plan = Plan(
            folder=folder,
            command=partial(suites_command, arguments=["--grid", grid, *(arguments or [])]),
            launches=launches,
            question=_question(grid, arguments or [], launches),
            rules=load_rules(rules),
            allow=allow or [],
            keep=keep,
            keep_days=keep_days,
            first_passes=first_night_passes,
            say=typer.echo,
        )
        code = spend(plan)
    except (RulesError, GridError, ToolchainError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(Kind.NOT_COMPARABLE.exit_code) from error
    except (BusyError, NightError, HistoryError, OSError, sqlite3.Error) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(Kind.INFRA.exit_code) from error
    except KeyboardInterrupt:
        typer.echo("interrupted: the night stays, and is marked; the same command goes on with it", err=True)
        raise typer.Exit(Kind.INFRA.exit_code) from None
    except Exception as error:  # Python's own exit status for it, 1, would say regression
        typer.echo(f"error: {type(error).__name__}: {error}\n{_keep_traceback(folder, error)}", err=True)
        raise typer.Exit(Kind.INFRA.exit_code) from error
    raise typer.Exit(code)


def _question(grid: str, arguments: list[str], launches: int) -> str:
    """All that decides what a night's suites do, the code included: what differs in any of it is another night.

    Raises:
        GridError: there is no such grid.
        ToolchainError: a release's name that is none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--toolchain", nargs="?")  # whether it has a value, the suites say
    release = parser.parse_known_args(arguments)[0].toolchain or DEFAULT_RELEASE
    toolchain = look_up(release, cache_folder())
    told = {"grid": grid, "grid_sha256": load_grid(grid).sha256, "arguments": arguments, "launches": launches}
    return json.dumps(
        told | {"toolchain": toolchain.identity if toolchain else f"{release}, not installed", "harness": git_state()}
    )


def _keep_traceback(folder: Path, error: Exception) -> str:
    """Append an error's traceback to the folder's log, and say where it is; where that cannot be, give it in full."""
    text = "".join(traceback.format_exception(error))
    log = folder / ERRORS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')}\n{text}\n")
    except OSError as why:
        return f"{log} cannot be written: {why.strerror}\n{text}"
    return f"No verdict: the nightly itself broke. Its traceback: {log}"
