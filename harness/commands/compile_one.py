"""``rwkv-tpu compile``: one case to a bmodel, and what that took and gave."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from compile.compiler import STAGE_TIMEOUT_S, CompileError
from compile.release import DEFAULT_RELEASE
from compile.sameness import differences
from compile.storage import StorageError, read_storage
from compile.toolchain import find
from harness.cases import parse_case
from harness.commands.options import Checkpoint, Size, StageTimeout, ToolchainVersion, check_model, model_of
from harness.compile_report import CompileReport, facts_of, report_of
from harness.jobs import compile_case
from harness.paths import cache_folder

if TYPE_CHECKING:
    from compile.compiler import Bmodel
    from compile.storage import Storage


def compile_one(
    case: Annotated[str, typer.Argument(help="a case's id, such as decode-F16-chunk", metavar="CASE")],
    checkpoint: Checkpoint = None,
    size: Size = None,
    toolchain: ToolchainVersion = DEFAULT_RELEASE,
    stage_timeout: StageTimeout = STAGE_TIMEOUT_S,
    twice: Annotated[
        bool,
        typer.Option("--twice", help="compile once more, and say what came out otherwise; 1 if any"),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, and progress to stderr")] = False,
) -> None:
    """Compile a case, or find it compiled; tell time, memory, size, stages and what the compiler predicts.

    Every time of a call is a prediction of the compiler's cycle profile. With --json, a compile that fails prints its
    stage and message as JSON too; the exit status is then 1.

    A case in parts (+blocks) is compiled one part after the other; rwkv-tpu join CASE --jobs N compiles several at a
    time, and leaves them where this finds them.

    Examples:
        rwkv-tpu compile decode-F16-chunk

        rwkv-tpu compile prefill_64-W4F16-chunk --size 0.1B --json

        rwkv-tpu compile decode-W8F16-chunk+group128 --twice
    """

    def say(line: str) -> None:
        typer.echo(line, err=as_json)

    check_model(checkpoint, size)
    wanted = parse_case(case)
    compiler = find(toolchain, cache_folder())
    model = model_of(checkpoint, size)
    try:
        bmodel = compile_case(wanted, model, compiler, cache_folder(), say=say, timeout_s=stage_timeout)
        report = report_of(wanted, model, compiler, bmodel, _storage(bmodel))
        if twice:
            with tempfile.TemporaryDirectory(prefix="twice-", dir=cache_folder()) as folder:
                again = compile_case(wanted, model, compiler, Path(folder), say=say, timeout_s=stage_timeout)
                found = differences(bmodel.folder, again.folder)
            report = msgspec.structs.replace(report, differences=found)
    except CompileError as error:
        if as_json:
            failure = {"case": wanted.id, "toolchain": compiler.compiler_commit, "stage": error.stage.value}
            typer.echo(msgspec.json.encode(failure | {"error": str(error)}))
            raise typer.Exit(1) from error
        raise
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        _print(report)
    if report.differences:
        raise typer.Exit(1)


def _storage(bmodel: Bmodel) -> Storage | None:
    try:
        return read_storage(bmodel.folder)
    except StorageError:  # joined of parts, each with a folder of its own
        return None


def _print(report: CompileReport) -> None:
    console = Console()
    figures = Column("times of a call: predicted, no measurement", overflow="fold")  # names of operations are long
    table = Table(report.case, figures, box=SIMPLE)
    for word, figure in facts_of(report):
        table.add_row(word, escape(figure))
    console.print(table)
    stages = Table("stage", "seconds", "memory at most", "artefacts", box=SIMPLE)
    for one in report.stages:
        stages.add_row(one.stage, f"{one.seconds:.1f}", f"{one.peak_bytes / 1e9:.2f} GB", ", ".join(one.artefacts))
    console.print(stages)
    console.print(f"{report.bmodel}", soft_wrap=True)
