"""One graph of one model to a bmodel: export, transform, deploy, each stage with its log, its time and its error."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import msgspec

from compile.export import export
from compile.identity import hash_graph_source
from compile.process import run, tail
from compile.profile import Profile, ProfileError, read_profile
from compile.spec import GraphKind, GraphSpec, Quantization

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from compile.dims import Arrays
    from compile.graphs.model import Rwkv7
    from compile.toolchain import Toolchain

_RESULT = "result.json"
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

    def __init__(self, stage: Stage, what: str, reason: str, *, rerun: str, log: Path) -> None:
        """Keep the stage for whoever records the outcome; the message carries all of it."""
        super().__init__(f"{stage.value} of {what}: {reason}\n  rerun: {rerun}\n  log:   {log}\n{tail(log)}")
        self.stage = stage


@dataclass(frozen=True, slots=True, kw_only=True)
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

    @property
    def key(self) -> str:
        """The cache key: a hash over all of the above and over the sources that act on it."""
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
    job: Job, cache: Path, *, say: Callable[[str], None] = lambda _: None, timeout_s: float = 3600.0
) -> Bmodel:
    """Compile, or find it compiled.

    Args:
        job: what to compile.
        cache: the cache folder; results live in ``cache/bmodels/<key>``, failures in ``cache/failed/<key>``.
        say: receives one line of progress at a time.
        timeout_s: limit for each stage, in seconds.

    Raises:
        CompileError: a stage failed. The working folder, with logs, is kept for the command that it shows.
    """
    key = job.key
    what = f"{job.spec.name} {job.quantization.value} [{key[:8]}]"
    final = cache / "bmodels" / key
    if (found := _load(final)) is not None:
        return found
    final.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / "bmodels" / f".{key}.lock"):
        if (found := _load(final)) is not None:  # made by another process while this one waited
            return found
        _sweep(final.parent, key)
        with _working_folder(final.parent, key) as work:
            try:
                result = _compile(job, key, work, what, say, timeout_s)
            except CompileError as error:
                kept = cache / "failed" / key
                shutil.rmtree(kept, ignore_errors=True)
                kept.parent.mkdir(exist_ok=True)
                work.rename(kept)
                error.args = (str(error).replace(str(work), str(kept)),)
                raise
            for pattern in _LEAVE_OUT:
                for unwanted in work.glob(pattern):
                    shutil.rmtree(unwanted) if unwanted.is_dir() else unwanted.unlink()
            (work / "model.onnx").unlink()
            (work / _RESULT).write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
            shutil.rmtree(final, ignore_errors=True)
            work.rename(final)
    return Bmodel(final, result, cached=False)


def _load(folder: Path) -> Bmodel | None:
    """A whole result, checked against the hash that it was stored with; None where there is none."""
    try:
        result = msgspec.json.decode((folder / _RESULT).read_bytes(), type=Compiled)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    bmodel = Bmodel(folder, result, cached=True)
    return bmodel if bmodel.path.is_file() and _sha256(bmodel.path) == result.bmodel_sha256 else None


def _sweep(parent: Path, key: str) -> None:
    """Remove what a killed compile of this key left behind; the caller holds the key's lock."""
    for leftover in parent.glob(f".{key}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _working_folder(parent: Path, key: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already where it was renamed


def _compile(job: Job, key: str, work: Path, what: str, say: Callable[[str], None], timeout_s: float) -> Compiled:
    costs: dict[str, StageCost] = {}
    tools = job.toolchain

    def stage(stage: Stage, command: list[str], log: Path, product: Path) -> None:
        say(f"{what}: {'lower and codegen' if stage is Stage.LOWER else stage.value} …")
        environment = tools.environment()
        done = run(command, folder=work, log=log, environment=environment, timeout_s=timeout_s)
        costs[stage.value] = StageCost(seconds=done.seconds, peak_bytes=done.peak_bytes)
        if done.status == 0 and product.is_file() and product.stat().st_size:
            return
        if stage is Stage.LOWER and list(work.glob("*_tpu.mlir")):
            stage = Stage.CODEGEN  # one tool does both; the TPU dialect on disk says that lowering succeeded
        # The whole environment is too long to paste: these are the settings that decide where libraries come from.
        settings = [f"{name}={environment[name]}" for name in ("PATH", "OMP_NUM_THREADS") if name in environment]
        rerun = f"cd {shlex.quote(str(work))} && env -u LD_LIBRARY_PATH -u PYTHONPATH {shlex.join(settings + command)}"
        reason = done.ending if done.status else f"left no {product.name}"
        raise CompileError(stage, what, reason, rerun=rerun, log=log)

    say(f"{what}: {Stage.EXPORT.value} …")
    start = time.monotonic()
    onnx = work / "model.onnx"
    graph = job.variant(job.arrays, T=job.spec.T, every_position=job.spec.kind is not GraphKind.PREFILL)
    f32 = export(graph, onnx)
    costs[Stage.EXPORT.value] = StageCost(seconds=time.monotonic() - start, peak_bytes=0)

    mlir = work / "model.mlir"
    log = work / "transform.log"
    command = [*tools.command("model_transform"), "--model_name", job.spec.name]
    stage(Stage.TRANSFORM, [*command, "--model_def", onnx.name, "--mlir", mlir.name], log, mlir)

    command = [*tools.command("model_deploy"), "--mlir", mlir.name, "--chip", "bm1684x"]
    command += ["--quantize", job.quantization.value, "--model", "model.bmodel", *job.flags]
    log = work / "deploy.log"
    if f32 and job.quantization is not Quantization.F32:
        table = work / "f32_operations.txt"
        table.write_text("".join(f"{name} F32\n" for name in f32))
        command += ["--quantize_table", table.name]
        if lost := set(f32) - set(re.findall(r'loc\("([^"]+)"\)', mlir.read_text())):
            reason = f"operations that must stay in float32 are not in the TOP dialect: {', '.join(sorted(lost)[:5])}"
            rerun = f"cd {shlex.quote(str(work))} && {shlex.join(command)}"
            raise CompileError(Stage.LOWER, what, reason, rerun=rerun, log=work / "transform.log")
    bmodel = work / "model.bmodel"
    stage(Stage.LOWER, command, log, bmodel)
    try:
        profile = read_profile(work / "compiler_profile_0.txt")
    except ProfileError as error:
        rerun = f"cd {shlex.quote(str(work))} && {shlex.join(command)}"
        raise CompileError(Stage.CODEGEN, what, str(error), rerun=rerun, log=log) from error
    seconds = sum(cost.seconds for cost in costs.values())
    say(f"{what}: compiled in {seconds:.0f} s, predicted {profile.predicted_ms:.4f} ms a call")
    return Compiled(
        key=key,
        bmodel_sha256=_sha256(bmodel),
        bmodel_bytes=bmodel.stat().st_size,
        profile=profile,
        costs=costs,
        toolchain=tools.identity,
        f32_operations=tuple(f32),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
