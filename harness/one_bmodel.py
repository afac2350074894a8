"""Several graphs of one model in one bmodel, and what they share there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from compile.batch import compile_all
from compile.compiler import STAGE_TIMEOUT_S
from compile.device_memory import DeviceMemory, device_memory, net_coefficients
from compile.join import joined
from harness.jobs import job_of, part_jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from compile.compiler import Bmodel, Job
    from compile.toolchain import Toolchain
    from harness.cases import Case
    from harness.weights import Weights


class Sharing(msgspec.Struct, frozen=True, kw_only=True):
    """Coefficients of the nets of one bmodel, in bytes.

    Attributes:
        apart: of all nets, each by itself.
        together: of the bmodel, in the file and on the device: what several nets have in common byte for byte is there
            once.
        largest: of the graph that has most, all of its parts.
    """

    apart: int
    together: int
    largest: int

    @property
    def shared(self) -> int:
        """What is saved."""
        return self.apart - self.together

    @property
    def duplicated(self) -> int:
        """What is there beyond one graph: the same weights, laid out for another graph."""
        return self.together - self.largest


def jobs_of(cases: Sequence[Case], weights: Weights, toolchain: Toolchain) -> list[Job]:
    """What to compile for all of *cases*: a graph as a whole or its parts, as each says.

    Raises:
        RefusedError: a case's variant is not written in parts.
    """
    return [
        job
        for case in cases
        for job in (part_jobs(case, weights, toolchain) if case.blocks else [job_of(case, weights, toolchain)])
    ]


def one_bmodel(
    cases: Sequence[Case],
    weights: Weights,
    toolchain: Toolchain,
    cache: Path,
    *,
    workers: int = 1,
    memory_bytes: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    timeout_s: float = STAGE_TIMEOUT_S,
) -> Bmodel:
    """Compile *cases* and put their nets into one bmodel, or find it made; arguments as of :func:`compile_all`.

    Raises:
        CompileError: a stage failed.
        ValueError: no case, or two whose nets have the same names.
    """
    return joined(
        jobs_of(cases, weights, toolchain),
        cache,
        what=" and ".join(case.id for case in cases),
        compiled=lambda jobs: compile_all(
            jobs, cache, workers=workers, memory_bytes=memory_bytes, say=say, timeout_s=timeout_s
        ),
    )


def sharing(bmodel: Path, cases: Sequence[Case], n_layer: int, toolchain: Toolchain) -> tuple[DeviceMemory, Sharing]:
    """What a bmodel with the nets of *cases* takes on the device, and what these share.

    Raises:
        DeviceMemoryError: ``model_tool`` does not say it.
    """
    memory, nets = device_memory(bmodel, toolchain), net_coefficients(bmodel, toolchain)
    return memory, Sharing(
        apart=sum(nets.values()),
        together=memory.coefficients,
        largest=max(_total(case, nets, n_layer) for case in cases),
    )


def _total(case: Case, nets: Mapping[str, int], n_layer: int) -> int:
    names = [case.net]
    if case.blocks:
        names = [f"{part}_{case.graph.T}" for part in ("embed", *(f"block_{i}" for i in range(n_layer)), "head")]
    return sum(nets[name] for name in names)
