"""The console command ``rwkv-tpu``: a subcommand is imported where it is called, since some need torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group


@dataclass(frozen=True, slots=True, kw_only=True)
class Subcommand:
    """Where a subcommand is.

    Attributes:
        at: ``module:name`` of a function, or of a typer application with subcommands of its own.
        kind: ``module:name`` of the class that reads its arguments and decides its exit codes.
        no_args_is_help: whether it tells how it is used where it has no arguments.
    """

    at: str
    kind: str = "typer.core:TyperCommand"
    no_args_is_help: bool = False

    def load(self, name: str) -> Any:
        """Import it, and make a command of it."""
        found = _named(self.at)
        if isinstance(found, typer.Typer):
            group = get_group(found)
            group.name = name
            return group
        kind: type[TyperCommand] = _named(self.kind)
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command(name, cls=kind, no_args_is_help=self.no_args_is_help)(found)
        return get_command(alone)


_GATE = "harness.commands.gate:GateCommand"
SUBCOMMANDS = {
    "toolchain": Subcommand(at="harness.commands.toolchain:app"),
    "history": Subcommand(at="harness.commands.history:app"),
    "known": Subcommand(at="harness.commands.known:app"),
    "convert": Subcommand(at="harness.commands.checkpoint:convert", no_args_is_help=True),
    "inspect": Subcommand(at="harness.commands.checkpoint:inspect", no_args_is_help=True),
    "lambada": Subcommand(at="harness.commands.lambada:lambada"),
    "doctor": Subcommand(at="harness.commands.doctor:doctor"),
    "finding": Subcommand(at="harness.commands.finding:finding", no_args_is_help=True),
    "first-board": Subcommand(at="harness.commands.first_board:first_board"),
    "profile": Subcommand(at="harness.commands.profile:profile", no_args_is_help=True),
    "gate": Subcommand(at="harness.commands.gate:gate", kind=_GATE),
    "report": Subcommand(at="harness.commands.report:report", no_args_is_help=True),
    "nightly": Subcommand(at="harness.commands.nightly:nightly", kind="harness.commands.nightly:NightlyCommand"),
    "release": Subcommand(at="harness.commands.release:release", kind=_GATE),
    "calibrate": Subcommand(at="harness.commands.calibrate:calibrate", no_args_is_help=True),
    "bisect": Subcommand(at="harness.commands.bisect:bisect", kind=_GATE),
    "bundle": Subcommand(at="harness.commands.bundle:bundle", no_args_is_help=True),
    "tune": Subcommand(at="harness.commands.tune:tune", no_args_is_help=True),
    "train": Subcommand(at="harness.commands.train:train", no_args_is_help=True),
    "model-card": Subcommand(at="harness.commands.model_card:model_card"),
    "state-tune": Subcommand(at="harness.commands.train:state_tune", no_args_is_help=True),
    "bench-compile": Subcommand(at="harness.commands.bench_compile:run_bench_compile"),
    "compile": Subcommand(at="harness.commands.compile_one:compile_one", no_args_is_help=True),
    "join": Subcommand(at="harness.commands.join:join", no_args_is_help=True),
    "soak-compile": Subcommand(at="harness.commands.soak_compile:soak_compile"),
    "stand-in": Subcommand(at="harness.commands.stand_in:stand_in", no_args_is_help=True),
}
"""By name, in the order in which the help lists them."""


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


class _Imported(Mapping[str, Any]):
    """The commands of the group, each imported when it is asked for and not before."""

    def __getitem__(self, name: str) -> Any:
        return SUBCOMMANDS[name].load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(SUBCOMMANDS)

    def __len__(self) -> int:
        return len(SUBCOMMANDS)


class _Group(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes | {"commands": _Imported()})


app = typer.Typer(
    cls=_Group,
    help="Conformance and benchmark harness for RWKV-7 on Sophgo BM1684X.",
    no_args_is_help=True,
    add_completion=False,
)


def main() -> None:
    """Run the command; an error that has an explanation is shown without a traceback.

    The exit status is then 1, or 2 where the command line was wrong.
    """
    try:
        get_group(app)(prog_name="rwkv-tpu")
    except Exception as error:
        from harness.explained import EXPLAINED, MISTYPED  # noqa: PLC0415 - takes seconds, which only an error may cost

        if not isinstance(error, EXPLAINED):
            raise
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2 if isinstance(error, MISTYPED) else 1) from error
