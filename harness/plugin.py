"""The options of ``pytest suites/``. What a run does with them is in :mod:`harness.suite`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from compile.compiler import STAGE_TIMEOUT_S
from compile.options import Option
from compile.release import DEFAULT_RELEASE
from harness.cases import GRIDS, VARIANTS
from harness.resume import ResumeError, asked_options
from harness.stage_timeout import HELP, parse_stage_timeout
from harness.throughput.plan import BOARD_DEPTHS, BOARD_REPEATS, parse_depths, parse_repeats
from tokenizer.codec import Codec

if TYPE_CHECKING:
    from collections.abc import Callable


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    grids = ", ".join(sorted(path.stem for path in GRIDS.glob("*.toml")))
    group = parser.getgroup("rwkv-tpu", "RWKV-7 on BM1684X")
    group.addoption(
        "--device",
        metavar="cmodel|N|ssh://…",
        default="cmodel",
        help="where bmodels run: 'cmodel' is the chip's simulator, a number is a board of this machine, "
        "ssh://user@host/N a distant one (default: %(default)s)",
    )
    group.addoption(
        "--libsophon",
        metavar="DIR",
        type=Path,
        help="the board's libsophon, where it is not in /opt/sophon/libsophon-current; rwkv-tpu stand-in makes one",
    )
    group.addoption(
        "--checkpoint",
        metavar="PATH",
        type=Path,
        help="RWKV-7 checkpoint: .pth, .safetensors, ggmf or an exported folder (default: the trained one that ships)",
    )
    group.addoption(
        "--bmodel",
        metavar="FILE,…",
        type=_files,
        help="judge these bmodels, of another port of RWKV-7, in place of our own; with --io (docs/bring-your-own.md)",
    )
    group.addoption(
        "--onnx",
        metavar="FILE,…",
        type=_files,
        help="compile and judge these ONNX files, one for each net of another port, in place of our own graphs; ONNX "
        "Runtime runs them too, so that a fault of the port is told from one of the compiler; with --io",
    )
    group.addoption(
        "--io",
        metavar="MAP",
        type=Path,
        help="TOML file that says what the port's inputs and outputs are, and which checkpoint it is judged by",
    )
    group.addoption(
        "--codec",
        type=Codec,
        choices=list(Codec),
        metavar="|".join(codec.value for codec in Codec),
        help="what the checkpoint's ids mean (default: as known for the file, or as its vocabulary size suggests)",
    )
    group.addoption(
        "--grid",
        metavar="NAME|FILE",
        default="default",
        help=f"which graphs to compile and judge: {grids}, or a TOML file (default: %(default)s)",
    )
    group.addoption(
        "--quantizations",
        metavar="NAME,…",
        help="these of the grid's precisions alone, such as F16,W4F16",
    )
    group.addoption(
        "--chunk-lengths",
        metavar="N,…",
        help="these of the grid's chunk lengths alone, such as 16; empty for decode alone",
    )
    group.addoption(
        "--variant",
        metavar="NAME",
        help=f"write the graphs in this variant in place of the grid's: {', '.join(VARIANTS)}",
    )
    group.addoption(
        "--options",
        metavar="NAME,…",
        help="compile with these options in place of the grid's, empty for none: "
        f"{', '.join(option.value for option in Option)}",
    )
    group.addoption(
        "--toolchain",
        metavar="VERSION",
        default=DEFAULT_RELEASE,
        help="installed TPU-MLIR release to compile with (default: %(default)s)",
    )
    group.addoption(
        "--stage-timeout",
        metavar="SECONDS",
        type=parse_stage_timeout,
        default=STAGE_TIMEOUT_S,
        help=f"{HELP} (default: %(default)s)",
    )
    group.addoption(
        "--known",
        metavar="FILE|none",
        help="the list of failures that are expected, none to judge without (default: suites/known/VERSION.toml of the "
        "toolchain, where there is one)",
    )
    group.addoption(
        "--depths",
        metavar="N,…",
        type=parse_depths,
        help="how many tokens lie behind the decode steps that the suite throughput times: they are fed first, not "
        f"timed (default: {','.join(map(str, BOARD_DEPTHS))} on a board, 0 and one chunk on the simulator)",
    )
    group.addoption(
        "--repeats",
        metavar="N",
        type=parse_repeats,
        help="how often the suite throughput times each chunk, prompt and window of decode steps; medians are told, "
        f"every sample is kept (default: {BOARD_REPEATS} on a board, few on the simulator)",
    )
    group.addoption(
        "--lambada",
        metavar="FILE",
        type=Path,
        help="the test set of LAMBADA, for grids that ask for that suite (default: where rwkv-tpu lambada finds it)",
    )
    group.addoption(
        "--resume",
        metavar="RUN",
        type=Path,
        help="go on with an interrupted run, named by its folder: what is recorded is not judged again; its options "
        "hold, and those given here must be the same",
    )
    group.addoption(
        "--runs",
        metavar="DIR",
        type=Path,
        default=Path("runs"),
        help="where the run's folder is made (default: %(default)s)",
    )


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Ask again what a run that is gone on with was asked; what is typed stands behind that, and is held against it.

    Raises:
        pytest.UsageError: there is no such run.
    """
    resumed = early_config.known_args_namespace.resume
    if resumed is not None:
        try:
            args[:0] = asked_options(resumed)
        except ResumeError as error:
            raise pytest.UsageError(str(error)) from error


_NAMES = (
    "device",
    "libsophon",
    "checkpoint",
    "bmodel",
    "onnx",
    "io",
    "codec",
    "grid",
    "quantizations",
    "chunk-lengths",
    "variant",
    "options",
    "toolchain",
    "stage-timeout",
    "depths",
    "repeats",
    "known",
    "lambada",
)


def _files(text: str) -> tuple[Path, ...]:
    return tuple(Path(name.strip()) for name in text.split(",") if name.strip())


def chosen_options(option: Callable[[str], object]) -> dict[str, str]:
    """Tell what each option is, defaults included, as it would be written; what has no value is left out."""
    found = {name: option(f"--{name}") for name in _NAMES}
    return {name: _written(value) for name, value in found.items() if value is not None}


def _written(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
