"""One graph of one model to a bmodel: export, transform, lower, codegen.

Each stage has its time, its peak of memory, its limit, its log, its artefacts and its error, and a marker on disk
(:mod:`compile.stages`). What a killed compile had finished is gone on from.
"""

from __future__ import annotations

import gc
import hashlib
import re
import shlex
import shutil
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from compile.cached import make_once
from compile.disk import DiskFullError, check_room, is_full, needed_bytes
from compile.eviction import Hold, evict, limit_bytes
from compile.export import export, is_folded
from compile.flags import transform_flags
from compile.identity import hash_graph_source
from compile.mixed import named
from compile.one_sign import Cut, cut_products
from compile.options import weight_group
from compile.own_work import OwnTimeoutError, forget_peak, limited, own_peak_bytes
from compile.process import run, tail
from compile.profile import Profile, ProfileError, read_profile
from compile.sameness import undated_sha256
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.stages import Progress, Stage, StageDone, artefacts_of, hash_file, read_progress, take_over
from compile.storage import StorageError, read_storage
from compile.timeline import FINAL_MLIR, PROFILE
from compile.watch import TwoParts
from compile.wide import TABLE, as_coded, keeps_wide, wide_products

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from compile.dims import Arrays
    from compile.graphs.model import Rwkv7
    from compile.process import Finished
    from compile.ready import ReadyOnnx
    from compile.storage import Storage
    from compile.toolchain import Toolchain

STAGE_TIMEOUT_S = 3600.0
"""Limit for each stage of a compile, unless another is asked for."""

RESULT = "result.json"
"""What is told of a bmodel, in its folder in the cache: a :class:`Compiled`."""

_FORMAT = 1  # raise it when this file makes something else of the same inputs: it is part of the cache key
_WIDE_FORMAT = 1  # the same of compile/wide.py, and only part of the key of what that acts on
_LOCATION = re.compile(r'loc\("([^"]+)"\)')
_WEIGHTS = re.compile(r'module\.weight_file = "([^"/]+)"')
_IN_PROCESS = "the same command of rwkv-tpu or pytest: the export runs in this process"
# Large, and remade in seconds.
_LEAVE_OUT = ("*.npz", "*.onnx.prototxt", "*.onnx.data", "*.bmodel.json", "*.net_0.profile", "model")


class CompileError(RuntimeError):
    """A stage failed: names stage and graph, shows the log's last lines and a command that reproduces the failure."""

    def __init__(self, stage: Stage, what: str, reason: str, *, rerun: str = "", log: Path | None = None) -> None:
        """Keep the stage for whoever records the outcome; the message carries all of it."""
        shown = "" if log is None else f"\n  rerun: {rerun}\n  log:   {log}\n{tail(log)}"
        super().__init__(f"{stage.value} of {what}: {reason}{shown}")
        self.stage = stage

    def __reduce__(self) -> tuple[Callable[..., CompileError], tuple[type[CompileError], Stage, tuple[object, ...]]]:
        """It passes from a worker's process to the one that waits for it, as it is."""
        return _error_again, (type(self), self.stage, self.args)


def _error_again(kind: type[CompileError], stage: Stage, arguments: tuple[object, ...]) -> CompileError:
    error = kind.__new__(kind)
    error.args, error.stage = arguments, stage
    return error


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
        onnx: the graph, where it comes as a file; then ``arrays`` are none, and ``arrays_sha256`` tells of the file.
        toolchain: the compiler.
        mixed: patterns of further operations that are computed in float32 (:mod:`compile.mixed`).
    """

    arrays: Arrays
    arrays_sha256: str
    variant: type[Rwkv7]
    spec: GraphSpec
    quantization: Quantization
    flags: tuple[str, ...] = ()
    onnx: ReadyOnnx | None = None
    toolchain: Toolchain
    mixed: tuple[str, ...] = ()

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
            *self.mixed,
            *([_WIDE_FORMAT] if self.wide else []),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]

    @property
    def wide(self) -> bool:
        """Whether time-mix stays in F16 where the quantisation codes matrices; see :mod:`compile.wide`.

        Not with a mixed table, which says itself what is not coded, and not of a graph that is not ours.
        """
        return keeps_wide(self.spec, self.quantization) and not self.mixed and self.onnx is None

    @property
    def weight_group(self) -> int:
        """Inputs of a matrix that share a step and a zero point; 1 without codes."""
        return weight_group(self.quantization, self.flags)


class StageCost(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage took."""

    seconds: float
    peak_bytes: int


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """A finished compile, as kept beside the bmodel; written last, so a folder that has it is whole.

    Attributes:
        undated_sha256: of the bmodel without the date in it (:mod:`compile.sameness`); empty in older results.
        wider: products whose matrix is in more bits than the quantisation's name says, and not in float32 by a table;
            what our graphs ask for (:func:`compile.wide.declared_wide`) is among them.
        cut: products that lose their largest weights to the coder (:mod:`compile.one_sign`); None where unknown.
        costs: of each stage, by its name; in older results what is now two stood under ``lower``.
    """

    key: str
    bmodel_sha256: str
    bmodel_bytes: int
    profile: Profile
    costs: dict[str, StageCost]
    toolchain: str
    f32_operations: tuple[str, ...]
    undated_sha256: str = ""
    wider: tuple[str, ...] = ()
    cut: tuple[Cut, ...] | None = None


@dataclass(frozen=True, slots=True)
class Bmodel:
    """A bmodel in the cache; while this exists, it is not evicted."""

    folder: Path
    result: Compiled
    cached: bool
    hold: Hold | None = field(default=None, compare=False, repr=False)

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
        cache: the cache folder; results live in ``cache/bmodels/<key>``, failures in ``cache/failed/<key>``. Above its
            limit (:mod:`compile.eviction`) it loses what was not used for longest.
        say: receives one line of progress at a time.
        timeout_s: limit for each stage, in seconds.

    Raises:
        RefusedError: the graph cannot be written; nothing is kept.
        CompileError: a stage failed. The working folder, with logs, is kept for the command that it shows.
        DiskFullError: there is no room; nothing is kept.
        LimitError: the cache's limit that is asked for is none.
    """
    final = cache / "bmodels" / job.key
    limit = limit_bytes()

    def make(work: Path) -> Bmodel:
        check_room(work, needed_bytes(job.arrays), f"the compile of {job.spec.name} {job.quantization.value}")
        with keeping_failures(work, cache / "failed" / final.name):
            result = _compile(Stages(job, work, say=say, timeout_s=timeout_s), say)
        for pattern in _LEAVE_OUT:
            for unwanted in work.glob(pattern):
                shutil.rmtree(unwanted) if unwanted.is_dir() else unwanted.unlink()
        (work / "model.onnx").unlink(missing_ok=True)  # not there where the TOP dialect was taken over
        (work / RESULT).write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
        return Bmodel(final, result, cached=False)

    def rescue(leftover: Path, work: Path) -> None:
        if (found := take_over(leftover, work, job.key)) is not None:
            progress, running = found
            whole = ", ".join(one.stage.value for one in progress.done)
            killed = f"was killed in {running.value}" if running else "was killed before it was put into the cache"
            going = f"{whole} whole, going on from there" if whole else "nothing of it is whole, beginning anew"
            say(f"{describe(job)}: an earlier compile {killed}: {going}")

    made = make_once(final, load_bmodel, make, rescue)
    if made.cached:
        return made
    evict(cache, limit)
    # What was made just now is recent, and not evicted before it is held.
    return _held(made)


def describe(job: Job) -> str:
    """The job in a few words, for a person."""
    return f"{job.spec.name} {job.quantization.value} [{job.key[:8]}]"


def _held(bmodel: Bmodel) -> Bmodel:
    with suppress(OSError):
        return replace(bmodel, hold=Hold(bmodel.folder / RESULT))
    return bmodel


def load_bmodel(folder: Path) -> Bmodel | None:
    """A whole result, checked against the hash that it was stored with; None where there is none."""
    try:
        hold = Hold(folder / RESULT)
        result = msgspec.json.decode((folder / RESULT).read_bytes(), type=Compiled)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    bmodel = Bmodel(folder, result, cached=True, hold=hold)
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

    A stage that the folder's marker says to be done, and that a killed compile left whole, is not run again.

    Attributes:
        what: the job in a few words, for a person.
        progress: how far it is; also on disk.
    """

    def __init__(self, job: Job, work: Path, *, say: Callable[[str], None], timeout_s: float) -> None:
        """*work* is empty or taken over; *say* receives a line as each stage begins; *timeout_s* limits each."""
        self.job = job
        self.work = work
        self.what = describe(job)
        self._say = say
        self._timeout_s = timeout_s
        found = read_progress(work) or Progress(key=job.key, limit_s=timeout_s)
        self.progress = msgspec.structs.replace(found, limit_s=timeout_s, running=None)

    @property
    def costs(self) -> dict[str, StageCost]:
        """What each stage took, by its name."""
        return {
            one.stage.value: StageCost(seconds=one.seconds, peak_bytes=one.peak_bytes) for one in self.progress.done
        }

    def export(self) -> list[str]:
        """Write ``model.onnx``; returns the operations to be computed in float32 in every quantisation.

        Raises:
            RefusedError: the graph cannot be written for what the job names.
        """
        if self.progress.named(Stage.EXPORT):
            return list(self.progress.f32_operations)
        self._begin(Stage.EXPORT)
        start, log = time.monotonic(), self.work / "export.log"
        forget_peak()
        try:
            with limited(self._timeout_s):
                f32 = self._write(self.work / "model.onnx")
        except RefusedError:
            raise
        except OwnTimeoutError as error:
            log.write_text(traceback.format_exc())
            reason = f"was stopped at its time limit after {time.monotonic() - start:.0f} s"
            raise CompileError(Stage.EXPORT, self.what, reason, rerun=_IN_PROCESS, log=log) from error
        except OSError as error:
            if is_full(self.work, str(error)):
                raise DiskFullError(f"the disk was full in export of {self.what}: {error}") from error
            raise
        except Exception as error:
            log.write_text(traceback.format_exc())
            reason = f"the exporter raised {type(error).__name__}"
            raise CompileError(Stage.EXPORT, self.what, reason, rerun=_IN_PROCESS, log=log) from error
        log.write_text(f"model.onnx: {len(f32)} operations to be computed in float32\n")
        self.progress = msgspec.structs.replace(self.progress, f32_operations=tuple(f32))
        made = sorted(self.work.glob("model.onnx*"))  # with its external data
        self._end(Stage.EXPORT, time.monotonic() - start, own_peak_bytes(), log, made)
        return f32

    def _write(self, path: Path) -> list[str]:
        if self.job.onnx is not None:
            return self.job.onnx.write(path)
        try:
            return export(self._graph(), path)
        finally:
            gc.collect()  # a graph refers to itself; those of several compiles would lie in memory with their weights

    def _graph(self) -> Rwkv7:
        job = self.job
        try:
            return job.variant(
                as_coded(job.arrays, job.quantization, job.weight_group) if job.wide else job.arrays,
                T=job.spec.T,
                every_position=job.spec.kind is not GraphKind.PREFILL,
                weight_group=1 if job.wide else job.weight_group,
            )
        except ValueError as error:
            raise RefusedError(Stage.EXPORT, self.what, f"the graph refuses: {error}") from error

    def transform(self) -> Path:
        """Make ``model.mlir``, the TOP dialect."""
        mlir = self.work / "model.mlir"
        if self.progress.named(Stage.TRANSFORM):
            return mlir
        command = [*self.job.toolchain.command("model_transform"), "--model_name", self.job.spec.name]
        command += ["--model_def", "model.onnx", "--mlir", mlir.name]
        if self.job.onnx is None and is_folded(self.work / "model.onnx"):
            command += transform_flags(self.job.toolchain.version)
        self._begin(Stage.TRANSFORM)
        log = self.work / "transform.log"
        done = self._run(Stage.TRANSFORM, command, log, mlir)
        self._end(Stage.TRANSFORM, done.seconds, done.peak_bytes, log, [mlir, *weight_files(mlir)])
        return mlir

    def lower(self, f32: list[str]) -> Path:
        """Make the TPU dialect and stop there."""
        job, log = self.job, self.work / "deploy.log"
        mlir = self.work / f"{job.spec.name}_bm1684x_{job.quantization.value.lower()}_tpu.mlir"
        self._begin(Stage.LOWER)
        done = self._run(Stage.LOWER, [*self._deploy(f32), "--not_gen_bmodel"], log, mlir)
        self._end(Stage.LOWER, done.seconds, done.peak_bytes, log, [mlir])
        return mlir

    def lower_and_generate(self, f32: list[str]) -> tuple[Path, Profile]:
        """Make ``model.bmodel``; returns it and its timeline.

        One tool does both stages. The second has begun when the final MLIR appears, be it empty.
        """
        bmodel, log = self.work / "model.bmodel", self.work / "deploy.log"
        command = self._deploy(f32)
        parts = TwoParts(self.work, FINAL_MLIR, limit_s=self._timeout_s, then=lambda: self._begin(Stage.CODEGEN))
        self._begin(Stage.LOWER)
        done = self._run(Stage.LOWER, command, log, bmodel, parts)
        lowered = sorted(self.work.glob("*_tpu.mlir"))
        seconds = max(done.seconds - parts.seconds[1], 0.0)
        self._end(Stage.LOWER, seconds, parts.peak_bytes[0] or done.peak_bytes, log, lowered)
        for moved in self.work.glob(f"*.bmodel.{PROFILE}"):  # what TPU-MLIR 1.15.2 calls it
            moved.rename(self.work / PROFILE)
        try:
            profile = read_profile(self.work / PROFILE)
        except ProfileError as error:
            rerun = f"cd {shlex.quote(str(self.work))} && {shlex.join(command)}"
            raise CompileError(Stage.CODEGEN, self.what, str(error), rerun=rerun, log=log) from error
        made = [*sorted(self.work.glob(FINAL_MLIR)), bmodel]
        self._end(Stage.CODEGEN, parts.seconds[1], parts.peak_bytes[1] or done.peak_bytes, log, made)
        return bmodel, profile

    def _deploy(self, f32: list[str]) -> list[str]:
        """The command that lowers, after its table is written."""
        job, mlir = self.job, self.work / "model.mlir"
        command = [*job.toolchain.command("model_deploy"), "--mlir", mlir.name, "--chip", "bm1684x"]
        command += ["--quantize", job.quantization.value, "--model", "model.bmodel", *job.flags]
        operations = _LOCATION.findall(mlir.read_text())
        more, missing = named(job.mixed, operations)
        if missing:
            reason = f"no operation of the TOP dialect has a name like {missing[0]}, which should be in float32"
            raise CompileError(Stage.LOWER, self.what, reason, rerun=_IN_PROCESS, log=self.work / "transform.log")
        f32 = list(dict.fromkeys([*f32, *more]))
        f16 = [name for name in (wide_products(mlir.read_text()) if job.wide else []) if name not in f32]
        if (f32 or f16) and job.quantization is not Quantization.F32:
            table = self.work / TABLE
            table.write_text("".join(f"{name} F32\n" for name in f32) + "".join(f"{name} F16\n" for name in f16))
            command += ["--quantize_table", table.name]
            if lost := set(f32).difference(operations):
                reason = (
                    f"operations that must stay in float32 are not in the TOP dialect: {', '.join(sorted(lost)[:5])}"
                )
                rerun = f"cd {shlex.quote(str(self.work))} && {shlex.join(command)}"
                raise CompileError(Stage.LOWER, self.what, reason, rerun=rerun, log=self.work / "transform.log")
        return command

    def _begin(self, stage: Stage) -> None:
        """Mark the stage on disk and tell it."""
        self.progress = msgspec.structs.replace(self.progress, running=stage)
        self.progress.write(self.work)
        self._say(f"{self.what}: {stage.value} …")

    def _end(self, stage: Stage, seconds: float, peak_bytes: int, log: Path, made: Sequence[Path]) -> None:
        """Mark that the stage ended well."""
        done = StageDone(
            stage=stage, seconds=seconds, peak_bytes=peak_bytes, log=log.name, artefacts=artefacts_of(made)
        )
        self.progress = msgspec.structs.replace(self.progress, done=(*self.progress.done, done), running=None)
        self.progress.write(self.work)

    def _run(
        self, stage: Stage, command: list[str], log: Path, product: Path, parts: TwoParts | None = None
    ) -> Finished:
        """Run a tool of one stage, or of two, which *parts* tells apart."""
        environment = self.job.toolchain.environment()
        folder = self.work
        if parts is None:
            done = run(command, folder=folder, log=log, environment=environment, timeout_s=self._timeout_s)
        else:
            both_s = 2 * self._timeout_s + 60  # each part has its own limit
            done = run(command, folder=folder, log=log, environment=environment, timeout_s=both_s, watch=parts.running)
            done = replace(done, timed_out=done.timed_out or parts.overdue)
            lowered = any(path.stat().st_size for path in self.work.glob("*_tpu.mlir"))
            stage = Stage.CODEGEN if lowered else self.progress.running or stage
        if done.status == 0 and product.is_file() and product.stat().st_size:
            return done
        if is_full(self.work, tail(log, 200)):
            raise DiskFullError(f"the disk was full in {stage.value} of {self.what}; the last words:\n{tail(log)}")
        # The whole environment is too long to paste: these are the settings that decide where libraries come from.
        settings = [f"{name}={environment[name]}" for name in ("PATH", "OMP_NUM_THREADS") if name in environment]
        unset = "env -u LD_LIBRARY_PATH -u PYTHONPATH"
        rerun = f"cd {shlex.quote(str(self.work))} && {unset} {shlex.join(settings + command)}"
        reason = done.ending if done.status else f"left no {product.name}"
        raise CompileError(stage, self.what, reason, rerun=rerun, log=log)


def weight_files(mlir: Path) -> list[Path]:
    """The file of weights beside an MLIR file, as that names it: it is looked for in the working directory."""
    with mlir.open(errors="replace") as lines:
        found = next(filter(None, map(_WEIGHTS.search, lines)), None)
    return [mlir.parent / found[1]] if found and (mlir.parent / found[1]).is_file() else []


def _compile(stages: Stages, say: Callable[[str], None]) -> Compiled:
    f32 = stages.export()
    stages.transform()
    bmodel, profile = stages.lower_and_generate(f32)
    seconds = sum(cost.seconds for cost in stages.costs.values())
    say(f"{stages.what}: compiled in {seconds:.0f} s, predicted {profile.predicted_ms:.4f} ms a call")
    try:
        storage = read_storage(stages.work)
    except StorageError:
        storage = None  # another format: nothing can be told
    cut = _cut(stages.job, stages.work, storage)
    if cut:
        say(f"{stages.what}: the compiler cuts off the largest weights of {', '.join(one.product for one in cut)}")
    return Compiled(
        key=stages.job.key,
        bmodel_sha256=hash_file(bmodel),
        bmodel_bytes=bmodel.stat().st_size,
        profile=profile,
        costs=stages.costs,
        toolchain=stages.job.toolchain.identity,
        f32_operations=tuple(f32),
        undated_sha256=undated_sha256(bmodel),
        wider=() if storage is None else _wider(stages.job, storage, f32),
        cut=cut,
    )


def _wider(job: Job, storage: Storage, f32: list[str]) -> tuple[str, ...]:
    return tuple(
        name
        for name in storage.wider(job.quantization, f32)
        if not any(re.fullmatch(pattern, name) for pattern in job.mixed)
    )


def _cut(job: Job, work: Path, storage: Storage | None) -> tuple[Cut, ...] | None:
    bits = job.quantization.weight_bits
    if not bits:
        return ()
    mlir = work / "model.mlir"
    weights = weight_files(mlir)
    if storage is None or not weights:
        return None
    return cut_products(mlir.read_text(), weights[0], storage.named(bits), bits=bits, group=job.weight_group)
