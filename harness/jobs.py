"""A case of a checkpoint as the compiler takes it: the one place where a case's flags come together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compile.batch import compile_all
from compile.compiler import STAGE_TIMEOUT_S, Job, RefusedError, compile_graph
from compile.dims import Dims
from compile.flags import known_flags, needed_flags
from compile.half_state import COMPUTED_IN_F16, Rwkv7HalfState
from compile.host_embedding import HOST_EMBEDDING
from compile.join import joined
from compile.mixed import TABLES, operations_of
from compile.options import WEIGHT_GROUPS, Option, with_options
from compile.parts import parts_of
from compile.stacked_state import MOST_LAYERS, STACKED_STATE, stacked_shapes
from compile.stages import Stage
from compile.unfused import LOSES_RELU, Rwkv7BlockUnfused, Rwkv7Unfused
from harness.cases import VARIANTS
from harness.weights import weights_of_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from compile.compiler import Bmodel
    from compile.graphs.model import Rwkv7
    from compile.parts import PartSpec
    from compile.toolchain import Toolchain
    from harness.cases import Case
    from harness.checkpoints import Model
    from harness.weights import Weights

_IN_PARTS = "chunk"
"""The variant that has graphs of its parts."""

_STATES_OF_A_LAYER = 3


def job_of(case: Case, model: Model | Weights, toolchain: Toolchain) -> Job:
    """What to compile for a case: the flags that its graph gets anyway, then those of its options.

    Raises:
        RefusedError: the case is compiled in parts, and is no one job.
    """
    if case.blocks:
        reason = "is compiled in parts, but here a graph is taken as a whole; leave out +blocks"
        raise RefusedError(Stage.EXPORT, case.id, reason)
    _refuse_groups_without_codes(case)
    dims = Dims.of(model.arrays)
    # Deeper models have it unasked: the message of a launch has no room for all of their states.
    stacked = Option.STACKED_STATE in case.options or dims.L > MOST_LAYERS
    return Job(
        arrays=model.arrays,
        arrays_sha256=model.arrays_sha256,
        variant=STACKED_STATE[_variant(case)] if stacked else _variant(case),
        spec=case.graph,
        quantization=case.quantization,
        flags=with_options(
            known_flags(needed_flags(model.arrays, case.graph), toolchain.version),
            case.options,
            len(stacked_shapes(dims) if stacked else dims.state_shapes()),
        ),
        toolchain=toolchain,
        mixed=operations_of(case.options),
    )


def _variant(case: Case) -> type[Rwkv7]:
    """The graph's class.

    Raises:
        RefusedError: states in float16, or an embedding on the host, are asked for, of a graph that has no such.
    """
    graph = _with_table(case)
    if Option.HOST_EMBEDDING not in case.options:
        return graph
    if graph not in HOST_EMBEDDING:
        reason = f"the variant {case.variant} is not written with the embedding on the host, only {_IN_PARTS} is"
        raise RefusedError(Stage.EXPORT, case.id, reason)
    return HOST_EMBEDDING[graph]


def _with_table(case: Case) -> type[Rwkv7]:
    """The graph's class with the embedding inside: written otherwise where the compiler would lose its ReLU."""
    if Option.F16_STATE in case.options:
        if case.variant != _IN_PARTS:
            reason = f"the variant {case.variant} is not written with states in float16, only {_IN_PARTS} is"
            raise RefusedError(Stage.EXPORT, case.id, reason)
        if case.quantization not in COMPUTED_IN_F16:
            names = ", ".join(sorted(one.value for one in COMPUTED_IN_F16))
            reason = f"f16_state needs arithmetic in float16, which {case.quantization.value} has not: {names}"
            raise RefusedError(Stage.EXPORT, case.id, reason)
        return Rwkv7HalfState
    loses = case.variant == _IN_PARTS and case.quantization in LOSES_RELU
    return Rwkv7Unfused if loses else VARIANTS[case.variant]


def _part_variant(case: Case, part: PartSpec) -> type[Rwkv7]:
    return Rwkv7BlockUnfused if part.block is not None and case.quantization in LOSES_RELU else part.graph


def _refuse_groups_without_codes(case: Case) -> None:
    """The compiler would say nothing, and make what it makes without.

    Raises:
        RefusedError: weights of this precision are not coded.
    """
    if not case.quantization.weight_bits and (sizes := WEIGHT_GROUPS.keys() & set(case.options)):
        reason = f"{min(size.value for size in sizes)} means nothing in {case.quantization.value}, which has no codes"
        raise RefusedError(Stage.EXPORT, case.id, reason)


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
    _refuse_groups_without_codes(case)
    if tables := TABLES.keys() & set(case.options):
        reason = f"{min(table.value for table in tables)} names operations of a whole graph; leave out +blocks"
        raise RefusedError(Stage.EXPORT, case.id, reason)
    if Option.F16_STATE in case.options:
        reason = "f16_state is of a whole graph: between parts all inputs are float32; leave out +blocks"
        raise RefusedError(Stage.EXPORT, case.id, reason)
    if Option.HOST_EMBEDDING in case.options:
        reason = "host_embedding is of a whole graph: among parts the embedding is a net of its own; leave out +blocks"
        raise RefusedError(Stage.EXPORT, case.id, reason)
    if Option.STACKED_STATE in case.options:
        reason = "stacked_state is of a whole graph: a part has the states of one layer; leave out +blocks"
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
        variant=_part_variant(case, part),
        spec=part,
        quantization=case.quantization,
        flags=with_options(
            known_flags(part.flags(weights.shape.n_head), toolchain.version), options, n_states=_STATES_OF_A_LAYER
        ),
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
