"""Choosing an engine by name, for everything that scores texts."""

from __future__ import annotations

import hashlib
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import reference
from compile.compiler import STAGE_TIMEOUT_S, compile_graph
from compile.dims import Dims
from compile.identity import hash_graph_source
from compile.lowering import Dialect
from compile.release import DEFAULT_RELEASE
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.toolchain import find
from harness.cases import VARIANTS, Case
from harness.device.board import locate_board
from harness.device.place import CMODEL
from harness.device.remote.address import SCHEME, RemoteAddress
from harness.device.watch import Note, ignore, watched_place
from harness.jobs import job_of
from harness.paths import cache_folder
from harness.targets.base import Score
from harness.targets.bmodel import BmodelScorer
from harness.targets.interpreter import open_interpreters
from harness.targets.ort import OnnxRuntime
from harness.targets.rwkv_package import RwkvPackage
from harness.targets.sail import SailTarget, import_sail
from harness.targets.torch import FastScorer, ReferenceTarget
from reference.emulated import Emulated
from reference.fast import Fast
from reference.naive import Naive
from reference.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from compile.compiler import Bmodel, Job
    from compile.toolchain import Toolchain
    from harness.checkpoints import Model
    from harness.device.place import Place
    from harness.targets.base import Scorer, StateArrays, Target, Text

SAIL = "sail"
EMULATED = {f"emulated-{precision.value.lower()}": precision for precision in Precision}
DIALECTS = {dialect.value: dialect for dialect in Dialect}

DESCRIPTIONS = {
    "naive": "the recurrence as written, float64: the truth",
    "torch": "the chunk-parallel reference, float32",
    "torch-bf16": "the same with matrix products in bfloat16",
    **{name: f"the reference with the rounding of {precision.value}" for name, precision in EMULATED.items()},
    "rwkv": "the PyPI package rwkv, float32",
    "ort": "the exported graphs on ONNX Runtime, float32",
    Dialect.TOP.value: "TPU-MLIR's interpreter of its TOP dialect, float32",
    Dialect.TPU.value: "TPU-MLIR's interpreter of its TPU dialect, quantised",
    CMODEL: "bmodels on the BM1684X simulator",
    "N": "bmodels on board number N",
    f"{SCHEME}user@host/N": "bmodels on a board of another machine",
    SAIL: "bmodels on board 0 through sophon-sail, on board N as sail:N",
}
"""Every target that scores texts, by name."""


class ScorerError(ValueError):
    """A target that does not exist or cannot be had; says which can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """How the graphs of a target are made, where it has graphs.

    Attributes:
        quantization: of the bmodels and of the TPU dialect.
        chunk_lengths: tokens a call of the prefill graphs; decode is always there.
        variant: how the model is written as a graph.
        toolchain: TPU-MLIR release.
        stage_timeout_s: limit for each stage of a compile, in seconds.
    """

    quantization: Quantization = Quantization.F16
    chunk_lengths: tuple[int, ...] = (32,)
    variant: str = "chunk"
    toolchain: str = DEFAULT_RELEASE
    stage_timeout_s: float = STAGE_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class EveryPosition:
    """Scores one text after the other with a target that gives logits at every position."""

    target: Target
    identity: dict[str, str]
    description: str
    batch: int = 1

    def score(self, texts: Sequence[Text], state: StateArrays | None = None) -> list[Score]:
        """Score each text; see :class:`harness.targets.base.Scorer`."""
        scores = []
        for prompt, continuation in texts:
            logits = self.target.run([*prompt, *continuation[:-1]], state).logits
            scores.append(Score.of(logits[-len(continuation) :], continuation))
        return scores


def check_name(name: str) -> None:
    """See that there may be a target of that name, before anything is computed.

    Raises:
        ScorerError, AddressError: there is none.
    """
    if name.startswith(SCHEME):
        RemoteAddress.parse(name)
    elif (name not in DESCRIPTIONS and not is_local_board(name)) or name == "N":
        raise ScorerError(f"no target {name!r}; there are {', '.join(DESCRIPTIONS)}")


def is_local_board(name: str) -> bool:
    """Whether *name* is a target on a board of this machine, through whatever interface."""
    number = name.removeprefix(f"{SAIL}:")
    return name == SAIL or (number.isascii() and number.isdecimal())


@contextmanager
def open_scorer(
    name: str,
    model: Model,
    compiled: Compiled = Compiled(),
    *,
    libsophon: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    note: Note = ignore,
) -> Generator[Scorer]:
    """Open the target of that name for a checkpoint. A board is locked and its canary asked, before and after.

    Args:
        name: one of DESCRIPTIONS.
        model: the checkpoint.
        compiled: how its graphs are made, where it has any.
        libsophon: of a board of this machine, in place of the usual folder.
        say: receives lines of progress of a compile.
        note: receives what a board's canary and health were.

    Raises:
        ScorerError: there is no such target.
        ToolchainError, CompileError, NoBoardError, RuntimeFault: a target that cannot be had.
        BoardBusyError, InfraError: see :func:`harness.device.watch.watched_place`; InfraError also at the end.
        InterpreterError: the process of an interpreter died, on opening or later.
    """
    check_name(name)
    if (scorer := _reference(name, model)) is not None:
        yield scorer
    elif name == "rwkv":
        theirs = {"target": name, "torch": str(torch.__version__), "rwkv": version("rwkv")}
        with RwkvPackage(model.checkpoint) as package:
            yield EveryPosition(package, theirs, DESCRIPTIONS[name])
    elif name == "ort":
        variant = VARIANTS[compiled.variant]
        identity = {"target": name, "onnxruntime": version("onnxruntime")} | _graphs(compiled)
        yield EveryPosition(OnnxRuntime(model.arrays, variant, compiled.chunk_lengths), identity, DESCRIPTIONS[name])
    elif name in DIALECTS:
        with _open_dialect(DIALECTS[name], model, compiled, say) as interpreted:
            yield interpreted
    elif name.startswith(SAIL):
        with _open_sail(name, model, compiled, libsophon, say, note) as sail:
            yield sail
    else:
        toolchain = find(compiled.toolchain, cache_folder())
        libraries = libsophon if name != CMODEL else None
        with (
            watched_place(name, libraries, toolchain, say=say, note=note) as place,
            _open_bmodels(place, model, compiled, toolchain, say) as bmodels,
        ):
            yield bmodels


def _reference(name: str, model: Model) -> Scorer | None:
    """The reference of that name, in this process; None where it is another target's."""
    checkpoint, what = model.checkpoint, DESCRIPTIONS.get(name, "")
    ours = {"target": name, "torch": str(torch.__version__), "reference": _reference_sha256()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fast, on_device = ours | {"device": device}, f"{what}, on {device}"
    if name == "naive":
        return EveryPosition(ReferenceTarget(Naive(checkpoint)), ours, what)
    if name == "torch":
        return FastScorer(Fast(checkpoint, device=device), fast, on_device)
    if name == "torch-bf16":
        return FastScorer(Fast(checkpoint, torch.bfloat16, device), fast, on_device)
    if name in EMULATED:
        return FastScorer(Emulated(checkpoint, EMULATED[name], device), fast, on_device)
    return None


@contextmanager
def _open_dialect(
    dialect: Dialect, model: Model, compiled: Compiled, say: Callable[[str], None]
) -> Generator[EveryPosition]:
    toolchain = find(compiled.toolchain, cache_folder())
    jobs = _jobs(model, compiled, GraphKind.PREFILL_ALL, toolchain)
    identity = {"target": dialect.value, "toolchain": toolchain.identity} | _graphs(compiled)
    description = f"{DESCRIPTIONS[dialect.value]}, TPU-MLIR {toolchain.compiler_commit}"
    if dialect is Dialect.TPU:
        identity["quantization"] = compiled.quantization.value
        description += f", {compiled.quantization.value}"
    limit_s = compiled.stage_timeout_s
    with open_interpreters(jobs, dialect, cache_folder(), say=say, timeout_s=limit_s) as target:
        yield EveryPosition(target, identity, description)


@contextmanager
def _open_bmodels(
    place: Place, model: Model, compiled: Compiled, toolchain: Toolchain, say: Callable[[str], None]
) -> Generator[BmodelScorer]:
    bmodels = _compile(model, compiled, GraphKind.PREFILL, toolchain, say)
    where = "simulator" if place.name == CMODEL else place.label if place.simulated else f"board {place.label}"
    description = (
        f"BM1684X {where}, {compiled.quantization.value}, prefill {_listed(compiled) or 'by decode'}, "
        f"TPU-MLIR {toolchain.compiler_commit}"
    )
    with place.open([bmodel.path for bmodel in bmodels]) as engine:
        identity = {"target": place.label, "bmodels": _sha256s(bmodels)}
        identity |= {file.path.rpartition("/")[2]: file.sha256 for file in engine.versions.libraries}
        for remark in engine.remarks:
            say(f"doubtful: {remark}")
        yield BmodelScorer(engine, identity, description)


@contextmanager
def _open_sail(
    name: str, model: Model, compiled: Compiled, libsophon: Path | None, say: Callable[[str], None], note: Note
) -> Generator[EveryPosition]:
    import_sail()  # before minutes of compiling
    board = name.removeprefix(SAIL).removeprefix(":") or "0"
    if locate_board(int(board), libsophon).simulated:
        raise ScorerError(f"sophon-sail drives boards alone, and {libsophon} is the simulator: name {board} as target")
    toolchain = find(compiled.toolchain, cache_folder())
    with watched_place(board, libsophon, toolchain, say=say, note=note):
        bmodels = _compile(model, compiled, GraphKind.PREFILL_ALL, toolchain, say)
        with closing(SailTarget([bmodel.path for bmodel in bmodels], Dims.of(model.arrays), int(board))) as target:
            identity = {"target": name, "bmodels": _sha256s(bmodels), "sail": target.version}
            description = (
                f"BM1684X board {board} through sophon-sail {target.version}, {compiled.quantization.value}, "
                f"prefill {_listed(compiled) or 'by decode'}, TPU-MLIR {toolchain.compiler_commit}"
            )
            yield EveryPosition(target, identity, description)


def _compile(
    model: Model, compiled: Compiled, prefill: GraphKind, toolchain: Toolchain, say: Callable[[str], None]
) -> list[Bmodel]:
    return [
        compile_graph(job, cache_folder(), say=say, timeout_s=compiled.stage_timeout_s)
        for job in _jobs(model, compiled, prefill, toolchain)
    ]


def _jobs(model: Model, compiled: Compiled, prefill: GraphKind, toolchain: Toolchain) -> list[Job]:
    """The decode graph and one of kind *prefill* for each chunk length."""
    specs = [GraphSpec(kind=prefill, T=T) for T in compiled.chunk_lengths]
    return [
        job_of(Case(graph=spec, quantization=compiled.quantization, variant=compiled.variant), model, toolchain)
        for spec in [GraphSpec(kind=GraphKind.DECODE), *specs]
    ]


def _graphs(compiled: Compiled) -> dict[str, str]:
    """Identity of the graphs before any compile."""
    return {"graphs": hash_graph_source(VARIANTS[compiled.variant]), "chunk_lengths": _listed(compiled)}


def _sha256s(bmodels: Sequence[Bmodel]) -> str:
    return ",".join(sorted(bmodel.result.bmodel_sha256 for bmodel in bmodels))


def _reference_sha256() -> str:
    """Of the reference's formulas: results kept from before a change must not answer for those after it."""
    files = sorted(Path(reference.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _listed(compiled: Compiled) -> str:
    return ", ".join(map(str, sorted(compiled.chunk_lengths)))
