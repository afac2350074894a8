"""``rwkv-tpu known``: the lists of failures that are expected."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from difflib import unified_diff
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from compile.release import DEFAULT_RELEASE
from harness.known import KNOWN, NONE, Entry, KnownError, cases_that_ship, parse_known, read_known, shipped_file
from harness.known_update import Why, updated
from harness.ops.case import shipped_ops
from reports.schema import RecordsError, RunFile, read

app = typer.Typer(help="Failures that are expected, by TPU-MLIR release.", no_args_is_help=True)

_DAYS = 30  # after which to look again, where nothing else is asked for
_BEGINNING = "# Expected failures with TPU-MLIR {version}; docs/known.md says what an entry looks like.\n"
_WIDTH = 120  # of the table, at least


@app.command(no_args_is_help=True)
def update(
    run: Annotated[Path, typer.Argument(help="a run's folder, or its records.jsonl", metavar="RUN")],
    file: Annotated[
        Path | None,
        typer.Option(help="the list (default: that of the run, or suites/known/VERSION.toml)", metavar="FILE"),
    ] = None,
    reason: Annotated[
        str, typer.Option(help="of new entries: why the checks fail", metavar="TEXT")
    ] = "to be explained",
    link: Annotated[str, typer.Option(help="of new entries: to the report of the fault", metavar="URL")] = "",
    look_again: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], help=f"of new entries (default: in {_DAYS} days)", metavar="DATE", show_default=False
        ),
    ] = None,
) -> None:
    """Bring the list of expected failures in line with RUN, and print what changed.

    Checks that fail without an entry get one. An entry goes where its checks pass, or where it matches nothing any
    more; it is changed or narrowed where they fail at another stage, or only some of them fail. All else stays as it
    is written, comments included. An interrupted run is refused, and checks without a verdict change nothing.

    Example:
        rwkv-tpu known update runs/20261120T150337.388138Z-cmodel --reason "state lost" --link https://…
    """
    found = _read_run(run)
    path = file or _list_of(found.run.options.get("known"), found.run.toolchain["version"])
    before = read_known(path).decode() if path.exists() else ""
    text = before or _BEGINNING.format(version=found.run.toolchain["version"])
    today = datetime.now(UTC).date()
    until = look_again.date() if look_again else today + timedelta(days=_DAYS)
    if not reason.strip() or until <= today:
        raise typer.BadParameter(f"--reason should not be empty, and --look-again later than today, {today}")
    result = updated(text, path, found, Why(reason=reason, link=link, since=today, look_again=until))
    if path.resolve().parent == KNOWN.resolve():
        _must_ship(result.added, path)
    for note in result.notes:
        typer.echo(note)
    changes = unified_diff(before.splitlines(), result.text.splitlines(), str(path), str(path), lineterm="")
    if result.text == text:
        typer.echo(f"{path}: nothing to change")
        return
    for line in changes:
        typer.echo(line)
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(result.text, encoding="utf-8", newline="")
        temporary.replace(path)
    except OSError as error:
        raise KnownError(f"{path}: cannot be written: {error.strerror}; name another --file") from error
    finally:
        temporary.unlink(missing_ok=True)


@app.command("list")
def show(
    toolchain: Annotated[str, typer.Option(help="the TPU-MLIR release", metavar="VERSION")] = DEFAULT_RELEASE,
    file: Annotated[Path | None, typer.Option(help="the list, where it is not the release's", metavar="FILE")] = None,
) -> None:
    """Show the expected failures of a release, with their age in days."""
    path = file or shipped_file(toolchain)
    entries = parse_known(read_known(path), path) if file or path.is_file() else ()
    if not entries:
        typer.echo(f"no failures are expected with TPU-MLIR {toolchain} ({path})")
        return
    today = datetime.now(UTC).date()
    table = Table("patterns", "stage", "reason", "link", "age", "look again")
    for entry in entries:
        late = entry.look_again <= today
        age = f"{(today - entry.since).days} d"
        again = f"{entry.look_again}{', due' if late else ''}"
        table.add_row(
            entry.title, entry.stage.value, entry.reason, entry.link, age, again, style="yellow" if late else None
        )
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table)


def _read_run(path: Path) -> RunFile:
    records = path if path.is_file() else path / "records.jsonl"
    try:
        found = read(records)
    except (RecordsError, OSError) as error:
        raise KnownError(f"{path}: should be a run's folder, or its records, but {error}") from error
    if found.interrupted:
        raise KnownError(
            f"{path}: the run was interrupted, so that it does not tell what fails; let it come to its end"
        )
    return found


def _list_of(asked: str | None, version: str) -> Path:
    """The list that the run was judged by; where it was judged by none, that of its release."""
    if asked is None or asked == NONE:
        return shipped_file(version)
    if not Path(asked).is_file():
        raise KnownError(f"{asked}: the run was judged by this list, which is not there; name it with --file")
    return Path(asked)


def _must_ship(added: tuple[Entry, ...], path: Path) -> None:
    """Keep cases of other grids out of a list that ships: every run of a grid that ships would call them stale."""
    ship = [*(case.id for case in cases_that_ship()), *(op.id for op in shipped_ops())]
    for entry in added:
        if entry.cases and not any(fnmatchcase(case, entry.cases) for case in ship):
            raise KnownError(
                f"{path}: case {entry.cases} is in no grid that ships, so that the entry would match nothing there; "
                f"--file mine.toml keeps it, and pytest suites/ --known mine.toml reads it"
            )
