"""What becomes of mutants: caught by a check of the suites, or explained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from compile.graphs.model import Rwkv7
from compile.spec import GraphKind
from harness.metrics import logits_distance, state_nmse
from harness.targets.graphs import state_outputs
from reference.state import State
from tests.detection.detect import bench
from tests.detection.engine import TorchDevice, TorchEngine
from tests.detection.good import cases, model
from tests.detection.judge import CHECKS
from tests.detection.mutations import mutants
from tests.detection.onnx_graph import OnnxGraph, exported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import ModelProto

    from harness.cases import Case
    from tests.detection.judge import Finding
    from tests.detection.mutations import Mutant

COUNT = 200
TRIALS = 24
"""Random calls that a survivor is compared with the right graph by."""

ROUNDING_NATS, ROUNDING_NMSE = 1e-9, 1e-10
"""Below both, two float32 graphs compute the same in another order."""

_EDGE = 2.0
"""Up to this many times a cap, it depends on the tokens whether a check fails: a few hundred others decide."""

_CHECKS = [check for check in CHECKS if check.startswith(("parity/", "state/"))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivor:
    """How far a mutant that no check sees is from the right graph, over random calls.

    Attributes:
        identical: whether every number was the same.
        kl_mean_nats: of all positions; NaN where something is not finite.
        kl_worst_nats: of the worst.
        nmse: of the kind of state that is furthest off.
        caps: of the checks: mean (infinite where none is judged), worst, NMSE.
    """

    identical: bool
    kl_mean_nats: float
    kl_worst_nats: float
    nmse: float
    caps: tuple[float, float, float]

    @property
    def reason(self) -> str:
        """Why no check sees it; empty where that is not explained."""
        if self.identical:
            return f"equivalent: bit-identical over {TRIALS} random calls"
        far = f"KL {self.kl_mean_nats:.1e} mean, {self.kl_worst_nats:.1e} worst, state NMSE {self.nmse:.1e}"
        if self.kl_worst_nats <= ROUNDING_NATS and self.nmse <= ROUNDING_NMSE:
            return f"equivalent but for float32 rounding: {far}"
        if all(got <= cap for got, cap in zip(self._measured(), self.caps, strict=True)):
            return f"below the caps{' of single positions' * math.isinf(self.caps[0])}: {far}"
        if all(got <= _EDGE * cap for got, cap in zip(self._measured(), self.caps, strict=True)):
            return f"at the edge of the caps: {far}"
        return ""

    def _measured(self) -> tuple[float, float, float]:
        return self.kl_mean_nats, self.kl_worst_nats, self.nmse


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What became of a mutant: one of both is there."""

    mutant: Mutant
    finding: Finding | None
    survivor: Survivor | None

    @property
    def explained(self) -> bool:
        """Whether it was caught, or there is a reason why not."""
        return self.finding is not None or bool(self.survivor and self.survivor.reason)


@cache
def right(case: Case) -> tuple[ModelProto, OnnxGraph]:
    """The graph of a case of the shipped checkpoint, without a change."""
    every = case.graph.kind is not GraphKind.PREFILL
    proto, _ = exported(Rwkv7(model("shipped").arrays, T=case.graph.T, every_position=every))
    return proto, OnnxGraph(proto)


def all_mutants(count: int = COUNT) -> Iterator[Mutant]:
    """*count* of them, shared among decode, prefill 16 and prefill_all 16."""
    three = cases()
    for i, case in enumerate(three):
        yield from mutants(case.graph.name, right(case)[0], len(range(i, count, len(three))))


def case_of(mutant: Mutant) -> Case:
    """The case whose graph was changed."""
    return next(case for case in cases() if case.graph.name == mutant.graph)


def fate(mutant: Mutant) -> Fate:
    """Put the mutant where the right graph belongs, and ask every check that loads it."""
    changed = OnnxGraph(mutant.model)
    finding = first_finding(mutant, changed)
    survivor = None if finding else distance(case_of(mutant), changed)
    return Fate(mutant=mutant, finding=finding, survivor=survivor)


def first_finding(mutant: Mutant, graph: OnnxGraph) -> Finding | None:
    """Of the first check that fails, in the order of a run."""
    case = case_of(mutant)
    nets = {other.graph.kind: right(other)[1] for other in cases()} | {case.graph.kind: graph}
    judged_by = bench("shipped")
    device = TorchDevice(TorchEngine, judged_by.model.checkpoint.shape, nets)
    # Of decode, the checks of prefill that end in decode are asked too.
    judged = [
        case,
        *(other for other in cases() if case.graph.kind is GraphKind.DECODE and other.graph.kind in _TAILED),
    ]
    for check in _CHECKS:
        for finding in judged_by.judge(device, judged, check):
            return finding
    return None


_TAILED = (GraphKind.PREFILL,)


def distance(case: Case, graph: OnnxGraph) -> Survivor:
    """Compare a graph with the right one, call by call: any tokens, from zero and from random states."""
    shape = model("shipped").checkpoint.shape
    limits = bench("shipped").limits[case.quantization]
    rng = np.random.default_rng(0)
    identical, rows, nmses = True, [], [0.0]
    for trial in range(TRIALS):
        state = State.random(shape, seed=trial, dtype=torch.float32)
        arrays = [array * (trial % 4 > 0) for array in state.arrays()]
        tokens = rng.integers(shape.n_vocab, size=case.graph.T).tolist()
        (want, *want_state), (got, *got_state) = right(case)[1].call(tokens, arrays), graph.call(tokens, arrays)
        identical &= all(np.array_equal(*pair) for pair in zip([want, *want_state], [got, *got_state], strict=True))
        rows.append(logits_distance(want[0], got[0], near_tie_nats=limits.near_tie_nats).kl_nats)
        nmses += state_nmse(state_outputs(want_state), state_outputs(got_state)).values()
    kl = np.concatenate(rows)
    return Survivor(
        identical=identical,
        kl_mean_nats=float(kl.mean()),
        kl_worst_nats=float(kl.max()),
        nmse=float(np.max(nmses)),
        caps=(
            # Prefill gives 16 positions to a check, the ends of chunks, of which no mean is judged: a right bmodel of
            # the trained checkpoint has 2.5e-4 over 32 of them from a random state, of which one has 3.1e-3.
            math.inf if case.graph.kind is GraphKind.PREFILL else limits.kl_mean_nats,
            limits.kl_worst_nats,
            limits.state_nmse,
        ),
    )
