"""A small bmodel with a known answer and a known time: where it goes wrong, the board is sick, not the compiler.

It is the decode graph of the model that ships, compiled by the default toolchain whichever one is judged:
a fault of a new release must not pass for one of the board. Its answer must be the reference's within the caps of its
precision, and, bit for bit, that of the first good run on the same board with the same libraries; its time must stay
near that run's. What the first good run gave is kept in the board's folder.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch

from compile.compiler import compile_graph
from compile.release import DEFAULT_RELEASE
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.toolchain import look_up
from harness.cases import Case
from harness.checkpoints import open_model
from harness.jobs import job_of
from harness.limits import load_limits
from harness.manifest import now
from harness.metrics import logits_distance, state_nmse
from harness.paths import cache_folder
from harness.prompts import prompt
from harness.targets.bmodel import get_state
from harness.targets.torch import ReferenceTarget
from reference.fast import Fast
from runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from compile.compiler import Bmodel
    from compile.toolchain import Toolchain
    from harness.checkpoints import Model
    from harness.limits import Limits
    from harness.targets.base import Output
    from runtime.engine import Engine

QUANTIZATION = Quantization.F16
STEPS = 16  # as many as the caps want for a mean

TIMES_SLOWER = 3.0
"""How much slower than its first good run a canary may be: throttling to the lowest clock is seen, noise is not."""

_FILE = "canary.json"


@dataclass(frozen=True, slots=True)
class Canary:
    """What to run, and what the reference says."""

    bmodel: Bmodel
    tokens: Sequence[int]
    want: Output
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a board gave.

    Attributes:
        key: bmodel, libraries and driver; another combination has another known answer.
        sha256: of all logits and of the state after the last token, as they came.
        step_ms: median wall time of a step, launch to synchronisation.
        distances: worst and mean KL in nats, state NMSE.
        breaches: how it differs from the reference beyond the caps.
    """

    key: str
    sha256: str
    step_ms: float
    distances: dict[str, float] = field(default_factory=dict)
    breaches: list[str] = field(default_factory=list)


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """The first good answer."""

    sha256: str
    step_ms: float
    since: str


def compile_for(
    toolchain: Toolchain, graph: GraphSpec, model: Model | None = None, *, say: Callable[[str], None] = lambda _: None
) -> Bmodel:
    """A graph of the model that ships, compiled by the default toolchain where that is installed.

    Raises:
        CompileError: a stage failed: something is wrong with this host, as this graph is known to compile.
    """
    model = model or open_model(None)
    compiler = look_up(DEFAULT_RELEASE, cache_folder()) or toolchain
    job = job_of(Case(graph=graph, quantization=QUANTIZATION), model, compiler)
    return compile_graph(job, cache_folder(), say=say)


def make_canary(toolchain: Toolchain, *, say: Callable[[str], None] = lambda _: None) -> Canary:
    """Compile the canary or find it compiled, and ask the reference.

    Raises:
        CompileError: see :func:`compile_for`.
    """
    model = open_model(None)
    bmodel = compile_for(toolchain, GraphSpec(kind=GraphKind.DECODE), model, say=say)
    tokens = prompt(model, STEPS, seed=8)
    want = ReferenceTarget(Fast(model.checkpoint, torch.float64)).run(tokens)
    return Canary(bmodel, tokens, want, load_limits()[0][QUANTIZATION])


def ask(canary: Canary, engine: Engine) -> Answer:
    """Run the canary on an engine that has its bmodel loaded.

    Raises:
        RuntimeFault: it does not run.
    """
    net = engine.nets[0].name
    digest = hashlib.sha256()
    rows, seconds = [], []
    with Session(engine) as session:
        for token in canary.tokens:
            logits = session.run(net, [token])
            rows.append(logits)
            seconds.append(session.last_call_s)
            digest.update(logits.tobytes())
        state = get_state(session)
    for array in state:
        digest.update(array.tobytes())
    distance = logits_distance(canary.want.logits, np.stack(rows), near_tie_nats=canary.limits.near_tie_nats)
    errors = state_nmse(canary.want.state, state)
    return Answer(
        key=_key(canary, engine),
        sha256=digest.hexdigest(),
        step_ms=statistics.median(seconds) * 1000,
        distances={
            "kl_worst_nats": distance.kl_worst_nats,
            "kl_mean_nats": distance.kl_mean_nats,
            "state_nmse": max(errors.values(), key=lambda error: math.inf if math.isnan(error) else error),
        },
        breaches=[*canary.limits.breaches(distance), *canary.limits.state_breaches(errors)],
    )


def judge(answer: Answer, folder: Path, *, timed: bool) -> list[str]:
    """What is wrong with an answer, in words; the first good one of its kind is kept in *folder* as the known one.

    Args:
        answer: what the board gave.
        folder: of the board.
        timed: whether its time means anything; a simulator's does not.
    """
    if answer.breaches:
        return [f"the canary's answer is wrong: {breach}" for breach in answer.breaches]
    every = _load(folder)
    known = every.get(answer.key)
    if known is None:
        every[answer.key] = Known(sha256=answer.sha256, step_ms=answer.step_ms, since=now())
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{_FILE}"
        part.write_bytes(msgspec.json.encode(every))
        part.replace(folder / _FILE)
        return []
    problems = []
    if answer.sha256 != known.sha256:
        problems.append(
            "the canary's answer is near the reference's, but not bit for bit that of its first good run of "
            f"{known.since}: {answer.sha256[:12]}, but should be {known.sha256[:12]}"
        )
    if timed and not answer.step_ms <= TIMES_SLOWER * known.step_ms:
        problems.append(
            f"the canary takes {answer.step_ms:.3f} ms a step, but should take at most {TIMES_SLOWER:g} times the "
            f"{known.step_ms:.3f} ms of its first good run of {known.since}"
        )
    return problems


def forget(folder: Path) -> None:
    """Drop the known answers of a board: the next good run gives new ones."""
    (folder / _FILE).unlink(missing_ok=True)


def _load(folder: Path) -> dict[str, Known]:
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=dict[str, Known])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _key(canary: Canary, engine: Engine) -> str:
    versions = engine.versions
    parts = [canary.bmodel.result.bmodel_sha256, *(file.sha256 for file in versions.libraries), str(versions.driver)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
