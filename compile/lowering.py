"""The compiler's two dialects of one graph, with their weights, as its interpreters load them."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from enum import Enum
from typing import TYPE_CHECKING

from compile.cached import make_once
from compile.compiler import STAGE_TIMEOUT_S, Stages, keeping_failures, weight_files
from compile.spec import Quantization

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from compile.compiler import Job

_FORMAT = 1  # raise it when this file keeps something else of the same inputs


class Dialect(Enum):
    """The forms that a graph takes inside the compiler."""

    TOP = "top"  # after ``model_transform``: float32, knows no chip
    TPU = "tpu"  # after lowering: quantised, for the chip


def lowered(
    job: Job,
    dialect: Dialect,
    cache: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
    timeout_s: float = STAGE_TIMEOUT_S,
) -> Path:
    """Compile as far as *dialect*, or find it done; the same stages with the same options as for a bmodel.

    Args:
        job: what to compile; quantisation and flags mean nothing to TOP.
        dialect: where to stop.
        cache: the cache folder; results live in ``cache/dialects/<key>``, failures in ``cache/failed/<key>``.
        say: receives one line of progress at a time.
        timeout_s: limit for each stage but the export, in seconds.

    Returns:
        The MLIR file; its folder holds its weights too.

    Raises:
        CompileError: a stage failed. The working folder, with logs, is kept for the command that it shows.
    """
    if dialect is Dialect.TOP:
        job = dataclasses.replace(job, quantization=Quantization.F32, flags=())
    key = hashlib.sha256(repr((_FORMAT, dialect.value, job.key)).encode()).hexdigest()[:24]
    final = cache / "dialects" / key

    def make(work: Path) -> Path:
        with keeping_failures(work, cache / "failed" / key):
            stages = Stages(job, work, say=say, timeout_s=timeout_s)
            f32 = stages.export()
            mlir = stages.transform()
            if dialect is Dialect.TPU:
                mlir = stages.lower(f32)
        wanted = {path.name for path in (mlir, *weight_files(mlir))}
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in wanted and path.suffix != ".log":
                path.unlink()
        mlir.rename(work / _name(dialect))
        return final / _name(dialect)

    return make_once(final, lambda folder: _load(folder / _name(dialect)), make)


def _load(mlir: Path) -> Path | None:
    if not mlir.is_file() or not weight_files(mlir):
        return None
    mlir.touch()  # a use, for the eviction
    return mlir


def _name(dialect: Dialect) -> str:
    return f"{dialect.value}.mlir"
