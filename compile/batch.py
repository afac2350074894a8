"""Many compiles at once: as many as were asked for, and as fit into memory and onto the disk together."""

from __future__ import annotations

import ctypes
import multiprocessing
import shutil
import signal
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TYPE_CHECKING

from compile.compiler import STAGE_TIMEOUT_S, Bmodel, Job, compile_graph
from compile.disk import needed_bytes as disk_bytes
from compile.streamed import float32_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from compile.dims import Arrays

_BASE_BYTES = 600 << 20
_TIMES = 5
_PR_SET_PDEATHSIG = 1


def needed_bytes(arrays: Arrays) -> int:
    """Memory that the compile of a graph with these weights will take at most, about.

    That is what the tools take for any graph, and copies of its weights: ``model_transform`` has up to five of them in
    float32 at a time (docs/sizes.md).
    """
    return _BASE_BYTES + _TIMES * float32_bytes(arrays)


def compile_all(
    jobs: Sequence[Job],
    cache: Path,
    *,
    workers: int = 1,
    memory_bytes: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    timeout_s: float = STAGE_TIMEOUT_S,
) -> list[Bmodel]:
    """Compile *jobs*, or find them compiled; the largest begin first.

    Args:
        jobs: each can be pickled, its arrays too, unless there is one worker.
        cache: as of :func:`compile.compiler.compile_graph`.
        workers: compiles at a time, each in a process of its own where there are several.
        memory_bytes: what those that run may take together, by :func:`needed_bytes`; None for no limit. What alone
            takes more is compiled alone, and said so. What would not fit onto the disk beside those that run waits
            for them.
        say: receives one line of progress at a time.
        timeout_s: limit for each stage of each compile, in seconds.

    Returns:
        Their bmodels, in the order of *jobs*.

    Raises:
        CompileError: one failed; those that ran have ended by then, and those that are done stay in the cache.
        BrokenProcessPool: a worker was killed, which the kernel does when memory runs out.
    """
    budget = float("inf") if memory_bytes is None else memory_bytes
    order = sorted(range(len(jobs)), key=lambda i: needed_bytes(jobs[i].arrays), reverse=True)
    for i in order:
        if needed_bytes(jobs[i].arrays) > budget:
            need, limit = needed_bytes(jobs[i].arrays) / 2**30, budget / 2**30
            say(f"{jobs[i].spec.name}: may take {need:.1f} GiB, more than the {limit:.1f} GiB allowed: alone")
    if workers == 1:
        done = {i: compile_graph(jobs[i], cache, say=say, timeout_s=timeout_s) for i in order}
        return [done[i] for i in range(len(jobs))]
    return _in_processes(jobs, order, cache, workers, budget, say, timeout_s)


def _in_processes(
    jobs: Sequence[Job],
    order: list[int],
    cache: Path,
    workers: int,
    budget: float,
    say: Callable[[str], None],
    timeout_s: float,
) -> list[Bmodel]:
    cache.mkdir(parents=True, exist_ok=True)  # whose disk is asked for its room
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    running: dict[Future[Bmodel], int] = {}
    done: dict[int, Bmodel] = {}
    waiting = list(order)
    try:
        while waiting or running:
            beside = [jobs[i] for i in running.values()]
            fits = (i for i in waiting if _fits([*beside, jobs[i]], budget, cache))
            chosen = next(fits, None) if len(running) < workers else None
            if chosen is not None:
                waiting.remove(chosen)
                running[pool.submit(compile_graph, jobs[chosen], cache, timeout_s=timeout_s)] = chosen
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                i = running.pop(future)
                done[i] = future.result()
                say(f"[{len(done)}/{len(jobs)}] {jobs[i].spec.name} {jobs[i].quantization.value}: {_told(done[i])}")
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()  # its tools end with it
        pool.shutdown(cancel_futures=True)  # the pool reaps them: who joins them here as well can miss that they ended
        raise
    pool.shutdown()
    return [done[i] for i in range(len(jobs))]


def _fits(together: Sequence[Job], budget: float, cache: Path) -> bool:
    """Whether memory and the disk have room for these at a time; one alone says itself what it lacks.

    What has been written so far counts twice, as it is no longer free: at worst one waits that need not.
    """
    if len(together) == 1:
        return True
    memory, disk = (sum(needed(job.arrays) for job in together) for needed in (needed_bytes, disk_bytes))
    return memory <= budget and disk <= shutil.disk_usage(cache).free


def _told(bmodel: Bmodel) -> str:
    if bmodel.cached:
        return "found in the cache"
    costs = bmodel.result.costs.values()
    seconds, peak = sum(cost.seconds for cost in costs), max(cost.peak_bytes for cost in costs)
    return f"compiled in {seconds:.0f} s, with {peak / 2**30:.1f} GiB at most"


def _end_with_parent() -> None:
    """Have the kernel kill this worker when the process that started it dies, however it does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
