"""``rwkv-tpu report``: runs as files for people and for pipelines."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reports.lenient import Loaded

_NOT_READ = 1
_NO_RUN = 2


class Format(Enum):
    """A file that a report can be."""

    CSV = "csv"
    HTML = "html"
    JUNIT = "junit"
    MARKDOWN = "markdown"


_FILES = {
    Format.CSV: "records.csv",
    Format.HTML: "index.html",
    Format.JUNIT: "junit.xml",
    Format.MARKDOWN: "report.md",
}


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="a run's folder, its records.jsonl, or a folder of runs; can be several", metavar="RUN…"),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="where the files go (default: the run's folder; report/ for several runs)", metavar="FOLDER"),
    ] = None,
    formats: Annotated[
        list[Format], typer.Option("--format", help="can be repeated (default: csv and html)", show_default=False)
    ] = [Format.CSV, Format.HTML],  # noqa: B006 - typer reads it, nobody changes it
) -> None:
    """Write RUN… as one CSV, one HTML page that opens without a network, JUnit XML or Markdown.

    0: written. 1: written, but a line or a file could not be read; the report names it. 2: a mistake in usage, or no
    run is there. Whether the checks passed is the report's first line, and the exit code of pytest and of the gate.

    Examples:
        rwkv-tpu report runs/20261120T150337.388138Z-cmodel

        rwkv-tpu report old/ new/ --out compared --format html --format markdown
    """
    from reports.lenient import load

    try:
        loaded = load(runs)
    except OSError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_NO_RUN) from error
    folder = out or _default_folder(loaded)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in dict.fromkeys(formats):
            _write(loaded, one, folder / _FILES[one])
            typer.echo(f"{one.value}: {folder / _FILES[one]}")
    except OSError as error:
        typer.echo(f"error: {error}; --out names a folder that can be written to", err=True)
        raise typer.Exit(_NO_RUN) from error
    for run in loaded.runs:
        if run.file.interrupted:
            typer.echo(f"interrupted: {run.path}, after {len(run.file.records)} checks", err=True)
    for fault in loaded.faults:
        typer.echo(f"error: {fault}", err=True)
    if loaded.faults:
        raise typer.Exit(_NOT_READ)


def _default_folder(loaded: Loaded) -> Path:
    return loaded.runs[0].path.parent if len(loaded.runs) == 1 else Path("report")


def _write(loaded: Loaded, form: Format, path: Path) -> None:
    # Each brings its own libraries: one format must not wait for those of another.
    match form:
        case Format.CSV:
            from reports.csv_file import write_csv

            write_csv(loaded, path)
        case Format.HTML:
            from harness.paths import cache_folder
            from reports.html_page import write_html

            write_html(loaded, path, cache_folder() / "pages")
        case Format.JUNIT:
            from reports.junit import write_junit

            write_junit(loaded, path)
        case Format.MARKDOWN:
            from reports.markdown import write_markdown

            write_markdown(loaded, path)
