"""``rwkv-tpu tune``: the compiler options with which a case is predicted to be fastest, and still right."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from compile.compiler import STAGE_TIMEOUT_S
from compile.options import Option, option_named
from compile.release import DEFAULT_RELEASE
from compile.toolchain import Toolchain, find
from harness.cases import Case, parse_case
from harness.checkpoints import Model, open_model
from harness.commands.options import Checkpoint, Size, StageTimeout, ToolchainVersion, check_model, model_of
from harness.device.place import CMODEL, open_place
from harness.limits import LimitsError, limits_for, load_limits
from harness.paths import cache_folder
from harness.sizes import size_of
from harness.tune import PROMISING, Attempt, ParityJudge, changing, compile_attempt, fits_simulator, judge_best, search
from harness.tuned import TUNED, Tuned, keep_tuned

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIDTH = 120  # of the table, at least: a row that is broken or cut cannot be read


def tune(
    case: Annotated[str, typer.Argument(help="a case's id without options, such as decode-F16-chunk", metavar="CASE")],
    checkpoint: Checkpoint = None,
    size: Size = None,
    toolchain: ToolchainVersion = DEFAULT_RELEASE,
    stage_timeout: StageTimeout = STAGE_TIMEOUT_S,
    budget: Annotated[
        float, typer.Option(min=0, help="begin no compile after so many minutes, but the first", metavar="MINUTES")
    ] = 15.0,
    options: Annotated[
        str | None,
        typer.Option(help=f"what to try, in this order: {','.join(one.value for one in PROMISING)}", metavar="NAME,…"),
    ] = None,
    parity: Annotated[bool, typer.Option(help="run the best on the simulator, until one passes")] = True,
    record: Annotated[bool, typer.Option("--record", help=f"keep what was found in suites/{TUNED.name}")] = False,
) -> None:
    """Compile a case with options of the compiler, alone and together, and show which is predicted to be fastest.

    Nothing here is a measurement. The best candidates are run on the simulator in their order, until one passes the
    judgement of the suite parity. A checkpoint that is too large for the simulator is judged by the one
    that ships, compiled with the same options. A search that was interrupted goes on where it was: compiles are cached.

    Examples:
        rwkv-tpu tune decode-F16-chunk --budget 5

        rwkv-tpu tune prefill_64-F16-chunk --size 0.1B --options quant_output,opt1 --record
    """
    start = parse_case(case)
    if start.options:
        raise typer.BadParameter(f"name the case without options: {replace(start, options=()).id}; --options restricts")
    check_model(checkpoint, size)
    if record and not parity:
        raise typer.BadParameter("--record keeps what passed parity, so that it goes without --no-parity")
    try:
        limits = limits_for(load_limits()[0], start) if parity else None
    except LimitsError as error:
        raise typer.BadParameter(f"{error}, or --no-parity") from error
    offered = PROMISING if options is None else tuple(dict.fromkeys(map(option_named, options.split(","))))
    compiler = find(toolchain, cache_folder())
    model = model_of(checkpoint, size)

    attempts = _compile_all(start, model, compiler, offered, budget_s=budget * 60, timeout_s=stage_timeout)
    best = attempts[0] if attempts[0].compiled else None
    judged_on = "none"
    if parity and limits is not None and best is not None:
        stand_in = model if fits_simulator(model) else open_model(None)
        judged_on = stand_in.checkpoint.name
        if stand_in is not model:
            typer.echo(f"parity: {model.checkpoint.name} is too large for the simulator; {judged_on} is judged instead")
        place = open_place(CMODEL, None, compiler.libraries)
        judge = ParityJudge(stand_in, compiler, place, limits, say=typer.echo, timeout_s=stage_timeout)
        attempts, best = judge_best(attempts, lambda chosen: judge.judge(replace(start, options=chosen)))
    _print(start, model, compiler, attempts)
    if best is None or best.compiled is None:
        typer.echo("nothing compiles" if attempts[0].compiled is None else "nothing passes parity")
        raise typer.Exit(1)
    chosen = replace(start, options=best.options).id
    typer.echo(f"best: {chosen}, predicted {best.compiled.profile.predicted_ms:.6f} ms a call")
    if record:
        keep_tuned(
            Tuned(
                case=start.id,
                size=size_of(model.checkpoint.shape),
                toolchain=compiler.version,
                options=best.options,
                predicted_cycles=best.compiled.profile.predicted_cycles,
                judged_on=judged_on,
            )
        )
        typer.echo(f"kept in {TUNED}")


def _compile_all(
    start: Case,
    model: Model,
    toolchain: Toolchain,
    offered: tuple[Option, ...],
    *,
    budget_s: float,
    timeout_s: float,
) -> list[Attempt]:
    """Search, and tell of every attempt as it ends."""
    useful = changing(offered, start, model, toolchain)
    if anyway := [option.value for option in offered if option not in useful]:
        typer.echo(f"had anyway by a graph of this kind: {', '.join(anyway)}")
    began = time.monotonic()

    def try_one(options: tuple[Option, ...], left_s: float) -> Attempt:
        case = replace(start, options=options)
        typer.echo(f"{time.monotonic() - began:5.0f} s  {case.id} …")
        attempt = compile_attempt(case, model, toolchain, left_s=left_s, say=lambda _: None, timeout_s=timeout_s)
        typer.echo(f"{time.monotonic() - began:5.0f} s  {case.id}: {_outcome(attempt)}")
        return attempt

    return search(useful, try_one, budget_s=budget_s)


def _outcome(attempt: Attempt) -> str:
    if attempt.compiled is None:
        return f"failed: {attempt.stage.value if attempt.stage else 'unknown'}"
    return f"predicted {attempt.compiled.profile.predicted_ms:.6f} ms"


def _print(start: Case, model: Model, toolchain: Toolchain, attempts: list[Attempt]) -> None:
    """A table of all attempts, and what else is to be said of some."""
    title = f"{start.id} of {model.checkpoint.name}, TPU-MLIR {toolchain.version}: predicted, no measurement"
    table = Table(title=title, box=SIMPLE, title_justify="left")
    table.add_column("options", overflow="fold")
    for heading in ("predicted ms", "DDR bytes", "instructions", "bmodel bytes", "compile s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("parity", no_wrap=True)
    for attempt in attempts:
        figures = [""] * 5
        if compiled := attempt.compiled:
            profile = compiled.profile
            figures = [
                f"{profile.predicted_ms:.6f}",
                f"{profile.ddr_read_bytes + profile.ddr_write_bytes + profile.ddr_copy_bytes:,}",
                f"{profile.tiu_instructions + profile.gdma_instructions:,}",
                f"{compiled.bmodel_bytes:,}",
                f"{sum(cost.seconds for cost in compiled.costs.values()):.0f}",
            ]
        table.add_row(_names(attempt), *figures, "compiled" if compiled else _outcome(attempt), _verdict(attempt))
    console = Console(width=max(Console().width, _WIDTH))
    console.print(table)
    for attempt in attempts:
        for remark in _remarks(attempt):
            console.print(f"{_names(attempt)}: {remark}", soft_wrap=True, markup=False, highlight=False)


def _names(attempt: Attempt) -> str:
    return "+".join(option.value for option in attempt.options) or "none"


def _verdict(attempt: Attempt) -> str:
    if attempt.parity is None:
        return ""
    return "passed" if attempt.parity.stage is None else f"failed: {attempt.parity.stage.value}"


def _remarks(attempt: Attempt) -> Iterator[str]:
    """Why it failed, and how far its numbers are from the reference's."""
    if attempt.message:
        yield attempt.message
    if attempt.parity is not None and attempt.parity.message:
        yield attempt.parity.message
    elif attempt.parity is not None:
        yield ", ".join(f"{name} {value:.1e}" for name, value in attempt.parity.metrics.items())
