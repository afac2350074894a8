"""A case of a checkpoint as the compiler takes it: the one place where a case's flags come together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compile.batch import compile_all
from compile.compiler import STAGE_TIMEOUT_S, Job, RefusedError, compile_graph
from compile.dims import Dims
from compile.flags import needed_flags
from compile.join import joined
from compile.options import Option, with_options
from compile.parts import parts_of
from compile.stages import Stage
from harness.cases import VARIANTS
from harness.weights import weights_of_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from compile.compiler import Bmodel
    from compile.parts import PartSpec
    from compile.toolchain import Toolchain
    from harness.cases import Case
    from harness.checkpoints import Model
    from harness.weights import Weights

_IN_PARTS = "chunk"
"""The variant that has graphs of its parts."""


def job_of(case: Case, model: Model | Weights, toolchain: Toolchain) -> Job:
    """What to compile for a case: the flags that its graph gets anyway, then those of its options.

    Raises:
        RefusedError: the case is compiled in parts, and is no one job.
    """
    if case.blocks:
        reason = "is compiled in parts, but here a graph is taken as a whole; leave out +blocks"
        raise RefusedError(Stage.EXPORT, case.id, reason)
    return Job(
        arrays=model.arrays,
        arrays_sha256=model.arrays_sha256,
        variant=VARIANTS[case.variant],
        spec=case.graph,
        quantization=case.quantization,
        flags=with_options(needed_flags(model.arrays, case.graph), case.options, Dims.of(model.arrays).L),
        toolchain=toolchain,
    )


def part_jobs(case: Case, weights: Weights, toolchain: Toolchain, parts: Iterable[PartSpec] | None = None) -> list[Job]:
    """What to compile for a case that is compiled in parts: a job for each.

    Args:
        case: its variant, precision and options hold for every part.
        weights: of the model.
        toolchain: the compiler.
        parts: some of them; None for all.

    Raises:
        RefusedError: the case's variant is not written in parts.
    """
    if case.variant != _IN_PARTS:
        reason = f"the variant {case.variant} is not written in parts, only {_IN_PARTS} is"
        raise RefusedError(Stage.EXPORT, case.id, reason)
    chosen = parts_of(case.graph, weights.shape.n_layer) if parts is None else parts
    return [_part_job(case, weights, toolchain, part) for part in chosen]


def _part_job(case: Case, weights: Weights, toolchain: Toolchain, part: PartSpec) -> Job:
    names = part.tensors(weights.arrays)
    # Only a layer has states, and they have the same place in it as in a model of one layer.
    options = [option for option in case.options if part.block is not None or option is not Option.SAME_ADDR]
    return Job(
        arrays=weights.arrays.only(names),
        arrays_sha256=weights.sha256(names),
        variant=part.graph,
        spec=part,
        quantization=case.quantization,
        flags=with_options(part.flags(weights.shape.n_head), options, n_layer=1),
        toolchain=toolchain,
    )


def compile_case(
    case: Case,
    model: Model,
    toolchain: Toolchain,
    cache: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
    timeout_s: float = STAGE_TIMEOUT_S,
) -> Bmodel:
    """The bmodel of a case, as a whole or joined of its parts, whichever the case says.

    Raises:
        CompileError: a stage failed, of one of the parts it may be.
    """
    if not case.blocks:
        return compile_graph(job_of(case, model, toolchain), cache, say=say, timeout_s=timeout_s)
    jobs = part_jobs(case, weights_of_model(model), toolchain)
    return joined(
        jobs,
        cache,
        what=case.id,
        compiled=lambda jobs: compile_all(jobs, cache, say=say, timeout_s=timeout_s),
    )
