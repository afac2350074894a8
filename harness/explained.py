"""The errors that end a command with their text instead of a traceback: importing them imports nearly everything."""

from __future__ import annotations

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
from harness.calibrate import CalibrationError
from harness.cases import CaseError
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
from harness.limits import LimitsError
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

EXPLAINED = (
    AddressError,
    BoardBusyError,
    CalibrationError,
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
    LimitsError,
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
