"""The compiler's own interpreters of its dialects: what it made of the graphs, before any code is generated."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from compile.compiler import STAGE_TIMEOUT_S
from compile.dims import Dims
from compile.host_embedding import table_of
from compile.interpreter import Interpreter
from compile.lowering import Dialect, lowered
from compile.stacked_state import is_stacked
from harness.targets.graphs import GraphTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from compile.compiler import Job


@contextmanager
def open_interpreters(
    jobs: Sequence[Job],
    dialect: Dialect,
    cache: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
    timeout_s: float = STAGE_TIMEOUT_S,
) -> Generator[GraphTarget]:
    """One process of the toolchain's Python for each graph.

    Args:
        jobs: a decode graph and graphs that give every position, of one model.
        dialect: TOP, or TPU with the jobs' quantisation.
        cache: the cache folder.
        say: receives one line of progress of a compile at a time.
        timeout_s: limit for each of its stages, in seconds.

    Raises:
        CompileError: a graph does not come as far as the dialect.
        InterpreterError: on opening or later, a process died.
    """
    with ExitStack() as stack:
        nets = {}
        for job in jobs:
            mlir = lowered(job, dialect, cache, say=say, timeout_s=timeout_s)
            nets[job.spec.T] = stack.enter_context(Interpreter(job.toolchain, mlir))
        graph, arrays = jobs[0].variant, jobs[0].arrays
        yield GraphTarget(nets, Dims.of(arrays), table_of(graph, arrays), stacked=is_stacked(graph))
