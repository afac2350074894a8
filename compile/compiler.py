"""One graph of one model to a bmodel: export, transform, deploy, each stage with its log, its time and its error."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from compile.cached import make_once
from compile.export import export
from compile.identity import hash_graph_source
from compile.process import run, tail
from compile.profile import Profile, ProfileError, read_profile
from compile.spec import GraphKind, GraphSpec, Quantization

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from compile.dims import Arrays
    from compile.graphs.model import Rwkv7
    from compile.toolchain import Toolchain

STAGE_TIMEOUT_S = 3600.0
"""Limit for each stage of a compile that runs a tool, unless another is asked for."""

RESULT = "result.json"
"""What is told of a bmodel, in its folder in the cache: a :class:`Compiled`."""

_FORMAT = 1  # raise it when this file makes something else of the same inputs: it is part of the cache key
_LEAVE_OUT = ("*.npz", "*.onnx.prototxt", "*.bmodel.json", "*.net_0.profile", "model")  # large, and remade in seconds


class Stage(Enum):
    """Where a compile can fail."""

    EXPORT = "export"  # arrays and torch module to ONNX
    TRANSFORM = "transform"  # ONNX to the TOP dialect
    LOWER = "lower"  # TOP to the TPU dialect, with quantisation
    CODEGEN = "codegen"  # TPU dialect to bmodel


class CompileError(RuntimeError):
    """A stage failed: names stage and graph, shows the log's last lines and a command that reproduces the failure."""

    def __init__(self, stage: Stage, what: str, reason: str, *, rerun: str = "", log: Path | None = None) -> None:
        """Keep the stage for whoever records the outcome; the message carries all of it."""
        shown = "" if log is None else f"\n  rerun: {rerun}\n  log:   {log}\n{tail(log)}"
        super().__init__(f"{stage.value} of {what}: {reason}{shown}")
        self.stage = stage


class RefusedError(CompileError):
    """The graph cannot be written for these arrays or this many tokens: nothing was run, and no tool is at fault."""


@dataclass(frozen=True, kw_only=True)  # without slots, which leave no place for a cached property
class Job:
    """Everything that determines a bmodel.

    Attributes:
        arrays: the model's tensors, float32, by BlinkDL's names.
        arrays_sha256: of ``arrays``, from :func:`compile.identity.hash_arrays`.
        variant: the graph's class.
        spec: kind of graph and tokens a call.
        quantization: precision of weights and arithmetic.
        flags: further arguments of ``model_deploy``.
        toolchain: the compiler.
    """

    arrays: Arrays
    arrays_sha256: str
    variant: type[Rwkv7]
    spec: GraphSpec
    quantization: Quantization
    flags: tuple[str, ...] = ()
    toolchain: Toolchain

    @cached_property
    def key(self) -> str:
        """The cache key: a hash over all of the above and over the sources that act on it.

        It is made once: a source that is edited during a compile must not have the result answer for the edited one.
        """
        parts = (
            _FORMAT,
            self.arrays_sha256,
            hash_graph_source(self.variant),
            self.spec.name,
            self.quantization.value,
            self.flags,
            self.toolchain.identity,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


class StageCost(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage took."""

    seconds: float
    peak_bytes: int


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """A finished compile, as kept beside the bmodel; written last, so a folder that has it is whole."""

    key: str
    bmodel_sha256: str
    bmodel_bytes: int
    profile: Profile
    costs: dict[str, StageCost]
    toolchain: str
    f32_operations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bmodel:
    """A bmodel in the cache."""

    folder: Path
    result: Compiled
    cached: bool

    @property
    def path(self) -> Path:
        """The bmodel file."""
        return self.folder / "model.bmodel"


def compile_graph(
    job: Job, cache: Path, *, say: Callable[[str], None] = lambda _: None, timeout_s: float = STAGE_TIMEOUT_S
) -> Bmodel:
    """Compile, or find it compiled.

    Args:
        job: what to compile.
        cache: the cache folder; results live in ``cache/bmodels/<key>``, failures in ``cache/failed/<key>``.
        say: receives one line of progress at a time.
        timeout_s: limit for each stage but the export, which is a call in this process, in seconds.

    Raises:
        RefusedError: the graph cannot be written; nothing is kept.
        CompileError: a stage failed. The working folder, with logs, is kept for the command that it shows.
    """
    final = cache / "bmodels" / job.key

    def make(work: Path) -> Bmodel:
        with keeping_failures(work, cache / "failed" / final.name):
            result = _compile(Stages(job, work, say=say, timeout_s=timeout_s), say)
        for pattern in _LEAVE_OUT:
            for unwanted in work.glob(pattern):
                shutil.rmtree(unwanted) if unwanted.is_dir() else unwanted.unlink()
        (work / "model.onnx").unlink()
        (work / RESULT).write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
        return Bmodel(final, result, cached=False)

    return make_once(final, load_bmodel, make)


def load_bmodel(folder: Path) -> Bmodel | None:
    """A whole result, checked against the hash that it was stored with; None where there is none."""
    try:
        result = msgspec.json.decode((folder / RESULT).read_bytes(), type=Compiled)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    bmodel = Bmodel(folder, result, cached=True)
    return bmodel if bmodel.path.is_file() and hash_file(bmodel.path) == result.bmodel_sha256 else None


@contextmanager
def keeping_failures(work: Path, kept: Path) -> Iterator[None]:
    """Where a stage fails, move the working folder to *kept*, and say so in the error."""
    try:
        yield
    except RefusedError:
        raise
    except CompileError as error:
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(exist_ok=True)
        work.rename(kept)
        error.args = (str(error).replace(str(work), str(kept)),)
        raise


class Stages:
    """The stages of one compile, in a working folder; each raises CompileError where it fails.

    Attributes:
        what: the job in a few words, for a person.
        costs: what each stage took, by its name.
    """

    def __init__(self, job: Job, work: Path, *, say: Callable[[str], None], timeout_s: float) -> None:
        """*work* is empty; *say* receives a line as each stage begins; *timeout_s* limits each but the export."""
        self.job = job
        self.work = work
        self.what = f"{job.spec.name} {job.quantization.value} [{job.key[:8]}]"
        self.costs: dict[str, StageCost] = {}
        self._say = say
        self._timeout_s = timeout_s

    def export(self) -> list[str]:
        """Write ``model.onnx``; returns the operations to be computed in float32 in every quantisation.

        Raises:
            RefusedError: the graph cannot be written for what the job names.
        """
        self._say(f"{self.what}: {Stage.EXPORT.value} …")
        start = time.monotonic()
        job = self.job
        try:
            graph = job.variant(
                job.arrays,
                T=job.spec.T,
                every_position=job.spec.kind is not GraphKind.PREFILL,
                weight_group=job.quantization.weight_group,
            )
        except ValueError as error:
            raise RefusedError(Stage.EXPORT, self.what, f"the graph refuses: {error}") from error
        f32 = export(graph, self.work / "model.onnx")
        self.costs[Stage.EXPORT.value] = StageCost(seconds=time.monotonic() - start, peak_bytes=0)
        return f32

    def transform(self) -> Path:
        """Make ``model.mlir``, the TOP dialect."""
        mlir = self.work / "model.mlir"
        command = [*self.job.toolchain.command("model_transform"), "--model_name", self.job.spec.name]
        command += ["--model_def", "model.onnx", "--mlir", mlir.name]
        self._run(Stage.TRANSFORM, command, self.work / "transform.log", mlir)
        return mlir

    def lower(self, f32: list[str]) -> Path:
        """Make the TPU dialect and stop there."""
        job = self.job
        mlir = self.work / f"{job.spec.name}_bm1684x_{job.quantization.value.lower()}_tpu.mlir"
        self._run(Stage.LOWER, [*self._deploy(f32), "--not_gen_bmodel"], self.work / "deploy.log", mlir)
        return mlir

    def lower_and_generate(self, f32: list[str]) -> tuple[Path, Profile]:
        """Make ``model.bmodel``; returns it and its timeline."""
        bmodel = self.work / "model.bmodel"
        command = self._deploy(f32)
        log = self.work / "deploy.log"
        self._run(Stage.LOWER, command, log, bmodel)
        try:
            return bmodel, read_profile(self.work / "compiler_profile_0.txt")
        except ProfileError as error:
            rerun = f"cd {shlex.quote(str(self.work))} && {shlex.join(command)}"
            raise CompileError(Stage.CODEGEN, self.what, str(error), rerun=rerun, log=log) from error

    def _deploy(self, f32: list[str]) -> list[str]:
        """The command that lowers, after its table is written."""
        job, mlir = self.job, self.work / "model.mlir"
        command = [*job.toolchain.command("model_deploy"), "--mlir", mlir.name, "--chip", "bm1684x"]
        command += ["--quantize", job.quantization.value, "--model", "model.bmodel", *job.flags]
        if f32 and job.quantization is not Quantization.F32:
            table = self.work / "f32_operations.txt"
            table.write_text("".join(f"{name} F32\n" for name in f32))
            command += ["--quantize_table", table.name]
            if lost := set(f32) - set(re.findall(r'loc\("([^"]+)"\)', mlir.read_text())):
                reason = (
                    f"operations that must stay in float32 are not in the TOP dialect: {', '.join(sorted(lost)[:5])}"
                )
                rerun = f"cd {shlex.quote(str(self.work))} && {shlex.join(command)}"
                raise CompileError(Stage.LOWER, self.what, reason, rerun=rerun, log=self.work / "transform.log")
        return command

    def _run(self, stage: Stage, command: list[str], log: Path, product: Path) -> None:
        to_bmodel = product.suffix == ".bmodel"
        self._say(f"{self.what}: {'lower and codegen' if to_bmodel else stage.value} …")
        environment = self.job.toolchain.environment()
        done = run(command, folder=self.work, log=log, environment=environment, timeout_s=self._timeout_s)
        self.costs[stage.value] = StageCost(seconds=done.seconds, peak_bytes=done.peak_bytes)
        if done.status == 0 and product.is_file() and product.stat().st_size:
            return
        if to_bmodel and list(self.work.glob("*_tpu.mlir")):
            stage = Stage.CODEGEN  # one tool does both; the TPU dialect on disk says that lowering succeeded
        # The whole environment is too long to paste: these are the settings that decide where libraries come from.
        settings = [f"{name}={environment[name]}" for name in ("PATH", "OMP_NUM_THREADS") if name in environment]
        unset = "env -u LD_LIBRARY_PATH -u PYTHONPATH"
        rerun = f"cd {shlex.quote(str(self.work))} && {unset} {shlex.join(settings + command)}"
        reason = done.ending if done.status else f"left no {product.name}"
        raise CompileError(stage, self.what, reason, rerun=rerun, log=log)


def _compile(stages: Stages, say: Callable[[str], None]) -> Compiled:
    f32 = stages.export()
    stages.transform()
    bmodel, profile = stages.lower_and_generate(f32)
    seconds = sum(cost.seconds for cost in stages.costs.values())
    say(f"{stages.what}: compiled in {seconds:.0f} s, predicted {profile.predicted_ms:.4f} ms a call")
    return Compiled(
        key=stages.job.key,
        bmodel_sha256=hash_file(bmodel),
        bmodel_bytes=bmodel.stat().st_size,
        profile=profile,
        costs=stages.costs,
        toolchain=stages.job.toolchain.identity,
        f32_operations=tuple(f32),
    )


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
