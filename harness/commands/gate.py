"""``rwkv-tpu gate``: did it get worse?"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand

from harness.gate.comparability import PARTS
from harness.gate.compare import gate as compare
from harness.gate.finding import Kind
from harness.gate.rules import RulesError, load_rules
from harness.gate.sides import read_side
from harness.gate.text import MOST, report_words

_NOT_COMPARABLE = Kind.NOT_COMPARABLE.exit_code
# Of all mistakes in usage, and of all errors that end a command in its own way: they have no public names.
_UsageError, _SaidError = cast("tuple[type[Exception], type[Exception]]", typer.BadParameter.__mro__[1:3])


class GateCommand(TyperCommand):
    """A command with the gate's exit codes.

    A mistake in usage does not end with 2, which means stale expectations, and a fault of the harness itself not with
    Python's own 1, which means regression.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; where they are wrong, nothing was compared."""
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            said: Any = error
            said.exit_code = _NOT_COMPARABLE
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command; where it breaks, there is no verdict."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, _SaidError):
            raise
        except Exception as error:
            traceback.print_exception(error)
            typer.echo(f"error: {type(error).__name__}: {error}\nNo verdict: the harness itself broke", err=True)
            raise typer.Exit(Kind.INFRA.exit_code) from error


def gate(
    base: Annotated[
        Path, typer.Argument(help="a run's folder, or a folder of such folders: repeats of one thing", metavar="BASE")
    ],
    new: Annotated[Path, typer.Argument(help="the same, of what is judged", metavar="NEW")],
    rules: Annotated[
        Path | None, typer.Option(help="rules that stand before those of suites/gate.toml", metavar="FILE")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help=f"a difference that is meant: {', '.join(PARTS)}; can be repeated", metavar="NAME"),
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help=f"show more than {MOST} findings of a kind")] = False,
) -> None:
    """Compare NEW with BASE, and say by the exit code whether it got worse.

    0: pass. 1: a regression. 2: stale expectations. 3: nothing measured, or not comparable. 4: device or
    infrastructure. Where several hold, 1 goes before 3, 3 before 4, 4 before 2; all are printed.

    Noisy figures, such as times on a board, are judged from repeated runs: ten a side, in turns.

    Examples:
        rwkv-tpu gate runs/old runs/new

        rwkv-tpu gate base/ new/ --allow machine.memory_bytes
    """
    try:
        read_rules = load_rules(rules)
    except RulesError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_NOT_COMPARABLE) from error
    report = compare(read_side(base), read_side(new), read_rules, allow or [])
    typer.echo(report_words(report, most=None if show_all else MOST))
    raise typer.Exit(report.exit_code)
