"""Faults as bmodels: compiled by the real toolchain, run on the simulator, judged by the check that is meant for them.

Most are faults of :mod:`tests.detection.faults` once more; what is wrong, and what a message must say, stands there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from compile.flags import needed_flags
from compile.identity import hash_arrays
from compile.spec import GraphKind, Quantization
from harness.jobs import job_of
from reports.schema import Stage
from tests.detection import wrong_graphs as wrong
from tests.detection.bmodel_engine import (
    FromZero,
    LastSession,
    ResetKeeps,
    Stale,
    Unwritten,
    Wrapped,
    WrittenTransposed,
)
from tests.detection.faults import FAULTS, PARITY, PREFILL_DECODE, RANDOM
from tests.detection.good import model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from compile.compiler import Job
    from compile.graphs.model import Rwkv7
    from compile.toolchain import Toolchain
    from harness.cases import Case
    from reference.checkpoint import Checkpoint
    from runtime.engine import Engine

DECODE, PREFILL, PREFILL_ALL = GraphKind.DECODE, GraphKind.PREFILL, GraphKind.PREFILL_ALL


@dataclass(frozen=True, kw_only=True)
class BmodelFault:
    """One fault.

    Attributes:
        name: short, with hyphens.
        wrong: what is wrong, in a sentence.
        meant: the check that should catch it.
        says: what its message must hold, for a reader to be led to the fault.
        judged: the kinds of graph whose cases the check judges; each must fail.
        stage: at which they must.
        variant: the graph that is compiled; None for the right one, which depends on the precision.
        kinds: the kinds of graph that are wrong; what others a check loads are right.
        weights: makes wrong tensors of the right ones.
        job: makes a wrong job of the right one.
        file: makes a wrong file of a right bmodel, in its place.
        engine: what is wrong around the launches of a right bmodel.
        patches: puts a faulty function of ours in, while it is entered.
        precision: of the case.
        model: the checkpoint: a name of `tests.detection.good.MODELS`.
    """

    name: str
    wrong: str
    meant: str
    says: str = r"should be <="
    judged: tuple[GraphKind, ...]
    stage: Stage = Stage.NUMERICS
    variant: type[Rwkv7] | None = None
    kinds: tuple[GraphKind, ...] = tuple(GraphKind)
    weights: Callable[[Checkpoint], Mapping[str, Tensor]] | None = None
    job: Callable[[Job], Job] = lambda job: job
    file: Callable[[Path], Path] = lambda path: path
    engine: Callable[[Engine], Any] = Wrapped
    patches: Callable[[], AbstractContextManager[object]] | None = None
    precision: Quantization = Quantization.F16
    model: str = "shipped"

    @property
    def compiled(self) -> bool:
        """Whether what is wrong is inside a bmodel, in place of around it."""
        return self.engine is Wrapped and self.patches is None

    def job_of(self, case: Case, toolchain: Toolchain) -> Job:
        """How the case is compiled, with the fault where its kind has it."""
        right = job_of(case, model(self.model), toolchain)
        if case.graph.kind not in self.kinds:
            return right
        job = right if self.variant is None else replace(right, variant=self.variant)
        if self.weights is not None:
            arrays, sha256 = _arrays(self.name)
            job = replace(job, arrays=arrays, arrays_sha256=sha256)
        return self.job(job)


@cache
def _arrays(name: str) -> tuple[dict[str, np.ndarray], str]:
    """A fault's wrong tensors, as graphs take them."""
    (fault,) = (fault for fault in BMODEL_FAULTS if fault.name == name)
    assert fault.weights is not None
    arrays = {name: t.numpy() for name, t in fault.weights(model(fault.model).checkpoint).items()}
    return arrays, hash_arrays(arrays)


_NAMED = {fault.name: fault for fault in FAULTS}


def _of(name: str, *judged: GraphKind, **fields: Any) -> BmodelFault:
    """A fault of torch targets as a bmodel; *fields* stand in place of its own."""
    fault = _NAMED[name]
    own = {"meant": fault.meant, "says": fault.says, "precision": fault.precision, "model": fault.model}
    return BmodelFault(name=name, judged=judged, **{"wrong": fault.wrong, **own, **fields})


def _weights(name: str, *judged: GraphKind, **fields: Any) -> BmodelFault:
    return _of(name, *judged, weights=_NAMED[name].weights, **fields)


def _launches(name: str) -> BmodelFault:
    return _of(name, PREFILL, patches=_NAMED[name].patches)


def _compiled_as(quantization: Quantization) -> Callable[[Job], Job]:
    return lambda job: replace(job, quantization=quantization)


def _groups_of_32(job: Job) -> Job:
    return replace(job, flags=(*needed_flags(job.arrays, job.spec), "--q_group_size", "32"))


def _cut(path: Path) -> Path:
    """The first half of the file, beside it."""
    half = path.with_name("half.bmodel")
    data = path.read_bytes()
    half.write_bytes(data[: len(data) // 2])
    return half


BMODEL_FAULTS = (
    # Formulas
    _of("decay-off", DECODE, variant=wrong.DECAY_OFF),
    _of("decay-clamped", DECODE, variant=wrong.DECAY_CLAMPED, meant=RANDOM),
    _of("key-without-epsilon", DECODE, variant=wrong.KEY_WITHOUT_EPSILON, meant=RANDOM),
    _of("value-residual-missing", PREFILL, variant=wrong.OWN_VALUES),
    _of("group-norm-epsilon", DECODE, variant=wrong.GROUP_NORM_EPSILON),
    _of("group-norm-axis", PREFILL, variant=wrong.GROUP_NORM_AXIS),
    BmodelFault(
        name="rate-missing",
        wrong="the in-context rate is 1 everywhere",
        meant=PARITY,
        judged=(PREFILL,),
        variant=wrong.RATE_MISSING,
    ),
    _of("relu-dropped", PREFILL, variant=wrong.RELU_DROPPED),
    *(
        BmodelFault(
            name=f"relu-fused-{precision.value.lower()}",
            wrong=f"a ReLU right behind its product, which the compiler fuses, and loses in {precision.value}",
            meant=PARITY,
            judged=(DECODE, PREFILL, PREFILL_ALL),
            variant=wrong.RELU_FUSED,
            precision=precision,
        )
        for precision in (Quantization.W8BF16, Quantization.W4BF16)
    ),
    _of("square-dropped", PREFILL, variant=wrong.SQUARE_DROPPED),
    _of("gate-missing", PREFILL, variant=wrong.GATE_MISSING),
    _of("embedding-norm-missing", PREFILL, variant=wrong.RAW_EMBEDDING),
    _of(
        "decode-wrong",
        PREFILL,
        wrong="prefill is right, decode drops the ReLU",
        variant=wrong.RELU_DROPPED,
        kinds=(DECODE,),
    ),
    _of(
        "prefill-wrong",
        PREFILL,
        wrong="decode is right, prefill drops the ReLU",
        variant=wrong.RELU_DROPPED,
        kinds=(PREFILL, PREFILL_ALL),
    ),
    # Weights
    _weights("head-and-embedding-swapped", PREFILL),
    _weights("head-truncated", PREFILL_ALL, meant=RANDOM),
    _weights("embedding-truncated", PREFILL_ALL),
    _weights("layer-from-another", PREFILL),
    _weights("ids-swapped", PREFILL),
    _weights("another-checkpoint", PREFILL),
    _weights("weights-noisy", PREFILL_ALL),
    _of("weights-8-bits", PREFILL_ALL, job=_compiled_as(Quantization.W8F16)),
    _of("group-size-w4", PREFILL, job=_groups_of_32),
    _of("group-size-w8", PREFILL_ALL, job=_groups_of_32),
    BmodelFault(
        name="bf16-for-f16",
        wrong="a bmodel that says F16 was compiled in BF16",
        meant=PARITY,
        judged=(PREFILL_ALL,),
        job=_compiled_as(Quantization.BF16),
    ),
    # State inside the graph
    _of("state-bf16", PREFILL_ALL, variant=wrong.STATE_BF16),
    _of("state-fp16", DECODE, variant=wrong.STATE_FP16),
    _of("state-int8", PREFILL_ALL, variant=wrong.STATE_INT8),
    _of("state-not-written-back", PREFILL, variant=wrong.STATE_FORGOTTEN, meant=PREFILL_DECODE, says="att.state"),
    _of("state-transposed", PREFILL, variant=wrong.STATE_TRANSPOSED),
    _of("shift-not-carried", PREFILL, variant=wrong.SHIFT_CUT),
    # Tokens and logits inside the graph
    _of("positions-swapped", PREFILL, variant=wrong.TOKENS_SWAPPED),
    _of("position-off-by-one", PREFILL, variant=wrong.ONE_BEFORE),
    _of("nan-everywhere", PREFILL, variant=wrong.NAN),
    _of("nan-in-one-position", PREFILL_ALL, variant=wrong.NAN_AT_ONE),
    _of("inf", PREFILL_ALL, variant=wrong.INF),
    _of("constant-logits", PREFILL, variant=wrong.CONSTANT),
    _of("logits-scaled", PREFILL_ALL, variant=wrong.SCALED),
    # Other stages
    BmodelFault(
        name="no-such-operator",
        wrong="the graph has an operator that the front end does not know",
        meant=PARITY,
        says="(?s)transform of .*Det",
        judged=(DECODE,),
        stage=Stage.TRANSFORM,
        variant=wrong.NO_OPERATOR,
    ),
    BmodelFault(
        name="bmodel-truncated",
        wrong="the second half of the bmodel's file is missing",
        meant=PARITY,
        says="half.bmodel",
        judged=(PREFILL,),
        stage=Stage.LOAD,
        file=_cut,
    ),
    BmodelFault(
        name="nets-of-two-checkpoints",
        wrong="decode is of a checkpoint of three layers, prefill of one of two",
        meant=PREFILL_DECODE,
        says="state",
        judged=(PREFILL,),
        stage=Stage.LOAD,
        kinds=(DECODE,),
        weights=lambda _: model("three layers").checkpoint.tensors,
    ),
    # Around right bmodels
    _of("state-of-another-session", PREFILL, engine=LastSession),
    _of(
        "state-not-written-back",
        PREFILL,
        engine=Unwritten,
        wrong="after prefill, the runtime leaves the session's state as it was",
    ),
    _of("only-from-zero", DECODE, engine=FromZero),
    _of("reset-keeps", PREFILL, engine=ResetKeeps),
    _of("initial-state-transposed", PREFILL, engine=WrittenTransposed),
    _of("stale-logits", PREFILL, engine=Stale),
    _launches("padded-with-0"),
    _launches("padded-with-33"),
    _launches("last-chunk-repeated"),
    _launches("last-chunk-dropped"),
)
"""All of them; a name may stand twice, once for a graph that is wrong and once for what is around it."""
