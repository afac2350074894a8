"""The console command ``rwkv-tpu``."""

from __future__ import annotations

import typer

from compile.compiler import CompileError, RefusedError
from compile.device_memory import DeviceMemoryError
from compile.disk import DiskFullError
from compile.eviction import LimitError
from compile.interpreter import InterpreterError
from compile.options import OptionError
from compile.profile import ProfileError
from compile.storage import StorageError
from compile.sweep import SweepError
from compile.toolchain import ToolchainError
from harness.cases import CaseError
from harness.commands import checkpoint, history, known, toolchain
from harness.commands.bench_compile import run_bench_compile
from harness.commands.bisect import bisect
from harness.commands.doctor import doctor
from harness.commands.first_board import first_board
from harness.commands.gate import GateCommand, gate
from harness.commands.lambada import lambada
from harness.commands.model_card import model_card
from harness.commands.nightly import NightlyCommand, nightly
from harness.commands.profile import profile
from harness.commands.release import release
from harness.commands.report import report
from harness.commands.soak_compile import soak_compile
from harness.commands.stand_in import stand_in
from harness.commands.train import state_tune, train
from harness.commands.tune import tune
from harness.compile_rows import RowsError
from harness.device.board import NoBoardError
from harness.device.guard import InfraError
from harness.device.lock import BoardBusyError
from harness.device.remote.address import AddressError
from harness.device.stand_in import StandInError
from harness.known import KnownError
from harness.lambada.documents import DataError
from harness.lambada.results import ResultsError
from harness.lambada.statistics import NotFiniteError
from harness.rates import RatesError
from harness.targets.scorers import ScorerError
from harness.training.recipe import RecipeError
from harness.tuned import TunedError
from reference.shape import CheckpointError
from reference.training.documents import DocumentError
from reference.training.trainer import DivergedError
from reports.history import HistoryError
from runtime.faults import RuntimeFault
from tokenizer.world import TokenizerError

app = typer.Typer(
    help="Conformance and benchmark harness for RWKV-7 on Sophgo BM1684X.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(toolchain.app, name="toolchain")
app.add_typer(history.app, name="history")
app.add_typer(known.app, name="known")
app.command(no_args_is_help=True)(checkpoint.convert)
app.command(no_args_is_help=True)(checkpoint.inspect)
app.command()(lambada)
app.command()(doctor)
app.command("first-board")(first_board)
app.command(no_args_is_help=True)(profile)
app.command(cls=GateCommand)(gate)
app.command(no_args_is_help=True)(report)
app.command(cls=NightlyCommand)(nightly)
app.command(cls=GateCommand)(release)
app.command(cls=GateCommand)(bisect)
app.command(no_args_is_help=True)(tune)
app.command(no_args_is_help=True)(train)
app.command("model-card")(model_card)
app.command("state-tune", no_args_is_help=True)(state_tune)
app.command("bench-compile")(run_bench_compile)
app.command("soak-compile")(soak_compile)
app.command("stand-in", no_args_is_help=True)(stand_in)

EXPLAINED = (
    AddressError,
    BoardBusyError,
    CaseError,
    CheckpointError,
    CompileError,
    DataError,
    DeviceMemoryError,
    DiskFullError,
    DivergedError,
    DocumentError,
    HistoryError,
    InfraError,
    InterpreterError,
    KnownError,
    LimitError,
    NoBoardError,
    NotFiniteError,
    OptionError,
    ProfileError,
    RatesError,
    RecipeError,
    ResultsError,
    RowsError,
    RuntimeFault,
    ScorerError,
    StandInError,
    StorageError,
    SweepError,
    TokenizerError,
    ToolchainError,
    TunedError,
)
"""Errors whose text says what is wrong and what to do."""

MISTYPED = (CaseError, OptionError, RefusedError)
"""Those of them that say that the command line asks for what there cannot be."""


def main() -> None:
    """Run the command; an error that has an explanation is shown without a traceback.

    The exit status is then 1, or 2 where the command line was wrong.
    """
    try:
        app()
    except EXPLAINED as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2 if isinstance(error, MISTYPED) else 1) from error
