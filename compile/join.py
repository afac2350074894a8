"""Nets that were compiled one by one, in one bmodel."""

from __future__ import annotations

import hashlib
import shlex
from typing import TYPE_CHECKING

import msgspec

from compile.cached import make_once
from compile.compiler import (
    RESULT,
    Bmodel,
    Compiled,
    CompileError,
    StageCost,
    keeping_failures,
    load_bmodel,
)
from compile.disk import check_room
from compile.process import run
from compile.profile import Profile
from compile.stages import Stage, hash_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from compile.compiler import Job

_FORMAT = 2  # raise it when this file makes something else of the same jobs
_TIMEOUT_S = 3600.0


def joined(
    jobs: Sequence[Job],
    cache: Path,
    *,
    what: str,
    compiled: Callable[[Sequence[Job]], Sequence[Bmodel]],
) -> Bmodel:
    """One bmodel with the nets of all *jobs*, or find it made.

    Equal coefficients are in the file once, and once on the device: ``model_tool`` and the runtime compare their
    hashes, a net's as a whole. Times, bytes moved and instructions of the result are the sums over all nets, which is
    what running each of them once takes.

    Args:
        jobs: of one toolchain; their nets have names of their own.
        cache: the cache folder; results live in ``cache/bmodels/<key>`` like those of a compile.
        what: the nets in a few words, for an error.
        compiled: compiles the jobs, or finds them compiled; not called where the result is there.

    Raises:
        CompileError: ``model_tool`` failed, at the stage CODEGEN.
        DiskFullError: there is no room for it.
        ValueError: there are none, or two nets have the same name.
    """
    names = [job.spec.name for job in jobs]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"nets {', '.join(names) or 'none'}, but should be at least one, each with a name of its own")
    toolchain = jobs[0].toolchain
    key = hashlib.sha256(repr((_FORMAT, toolchain.identity, *(job.key for job in jobs))).encode()).hexdigest()[:24]
    final = cache / "bmodels" / key

    def make(work: Path) -> Bmodel:
        bmodels = compiled(jobs)
        check_room(work, sum(bmodel.path.stat().st_size for bmodel in bmodels), f"joining {what}")
        path = work / "model.bmodel"
        command = [*toolchain.command("model_tool"), "--combine", *(str(bmodel.path) for bmodel in bmodels)]
        command += ["-o", path.name]
        log = work / "combine.log"
        with keeping_failures(work, cache / "failed" / key):
            done = run(command, folder=work, log=log, environment=toolchain.environment(), timeout_s=_TIMEOUT_S)
            if done.status or not path.is_file():
                reason = done.ending if done.status else f"left no {path.name}"
                rerun = f"cd {shlex.quote(str(work))} && {shlex.join(command)}"
                raise CompileError(Stage.CODEGEN, f"{what} [{key[:8]}]", reason, rerun=rerun, log=log)
        result = _sum(jobs, bmodels, key, path, StageCost(seconds=done.seconds, peak_bytes=done.peak_bytes))
        (work / RESULT).write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
        return Bmodel(final, result, cached=False)

    return make_once(final, load_bmodel, make)


def _sum(jobs: Sequence[Job], bmodels: Sequence[Bmodel], key: str, path: Path, combining: StageCost) -> Compiled:
    results = [bmodel.result for bmodel in bmodels]
    stages = {name: None for result in results for name in result.costs}
    costs = {
        name: StageCost(
            seconds=sum(result.costs[name].seconds for result in results if name in result.costs),
            peak_bytes=max(result.costs[name].peak_bytes for result in results if name in result.costs),
        )
        for name in stages
    }
    return Compiled(
        key=key,
        bmodel_sha256=hash_file(path),
        bmodel_bytes=path.stat().st_size,
        profile=add_profiles([result.profile for result in results]),
        costs=costs | {"combine": combining},
        toolchain=results[0].toolchain,
        f32_operations=tuple(name for result in results for name in result.f32_operations),
        wider=tuple(
            f"{job.spec.name}: {name}" for job, result in zip(jobs, results, strict=True) for name in result.wider
        ),
        cut=None
        if any(result.cut is None for result in results)
        else tuple(
            msgspec.structs.replace(one, product=f"{job.spec.name}: {one.product}")
            for job, result in zip(jobs, results, strict=True)
            for one in result.cut or ()
        ),
    )


def add_profiles(profiles: Sequence[Profile]) -> Profile:
    """What running one net after the other takes, by their predictions."""
    names = Profile.__struct_fields__
    return Profile(**{name: sum(getattr(profile, name) for profile in profiles) for name in names})
