"""The search for the compiler options that suit a case best: by predicted time, as far as the numbers stay right."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import torch

from compile.compiler import STAGE_TIMEOUT_S, CompileError, compile_graph
from compile.options import Option, conflict, in_order
from harness.check import Check
from harness.embedding import embedding_for
from harness.jobs import job_of
from harness.oracle import oracle_for
from harness.parity import judge_from_random_state, judge_from_zero_state
from harness.paths import cache_folder
from reference.state import State
from reports.schema import Stage
from runtime.faults import LibraryMissing, RuntimeFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from compile.compiler import Compiled
    from compile.toolchain import Toolchain
    from harness.cases import Case
    from harness.checkpoints import Model
    from harness.device.place import Place
    from harness.limits import Limits

    Options = tuple[Option, ...]
    TryOne = Callable[[Options, float], "Attempt"]

PROMISING = (
    Option.NO_TOPO_SORT,
    Option.QUANT_OUTPUT,
    Option.OPT1,
    Option.HIGH_PRECISION,
    Option.QUANT_INPUT,
    Option.SAME_ADDR,
    Option.IO_ALONE,
    Option.IO_TAG,
    Option.IO_RELOC,
    Option.IN_REUSE,
    Option.FLOAT_OUTPUT,
    Option.OPT2,
    Option.TOPO_SORT,
    Option.NO_LAYER_GROUP,
)
"""Every option that leaves the precision as it is, and what a net takes, in the order in which it is tried: by what it
gained on the default checkpoint.
"""

_LEAST_S = 60.0  # for a stage of a compile: what was begun in time may take a little longer
_SIMULATED_PARAMETERS = 8_000_000  # more, and the simulator takes minutes for what is judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """What running a candidate showed.

    Attributes:
        stage: where it failed; None where it passed.
        message: why.
        metrics: the worst of each, as far as it got.
    """

    stage: Stage | None
    message: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What became of a candidate.

    Attributes:
        compiled: None where it did not compile.
        stage: where the compile failed; None where it did not.
        message: why it failed.
        parity: None where it was not judged.
    """

    options: Options
    compiled: Compiled | None
    stage: Stage | None = None
    message: str = ""
    parity: Parity | None = None

    @property
    def rank(self) -> tuple[float, ...]:
        """Small is good: predicted cycles, then bytes of DDR, then the fewest options."""
        if self.compiled is None:
            return (float("inf"), 0.0, len(self.options))
        profile = self.compiled.profile
        moved = profile.ddr_read_bytes + profile.ddr_write_bytes + profile.ddr_copy_bytes
        return (profile.predicted_cycles, moved, len(self.options))


def search(
    offered: Sequence[Option], try_one: TryOne, *, budget_s: float, clock: Callable[[], float] = time.monotonic
) -> list[Attempt]:
    """Try no option, each alone, then combinations, those first whose options gained most when they were alone.

    Args:
        offered: what may be combined, in the order in which to try it.
        try_one: compiles with some options, given the seconds that are left, of which the first has no limit; a compile
            that fails is an attempt too.
        budget_s: no attempt but the first begins after this many seconds.
        clock: in seconds.

    Returns:
        Every attempt, the best first; no option at all is always among them.
    """
    end = clock() + budget_s
    found: dict[Options, Attempt] = {(): try_one((), float("inf"))}

    def spend(candidates: Iterable[Options]) -> None:
        for options in candidates:
            if (left := end - clock()) <= 0:
                return
            found[options] = try_one(options, left)

    spend((option,) for option in offered)
    if all((option,) in found for option in offered):
        spend(_combined(offered, found))
    return sorted(found.values(), key=lambda attempt: attempt.rank)


def _combined(offered: Sequence[Option], found: Mapping[Options, Attempt]) -> Iterator[Options]:
    """Combinations of two and more, the most promising first; none with an option that breaks what compiles without."""
    alone = {option: found[option,].rank[0] for option in offered}
    compiled = [cycles for cycles in alone.values() if cycles < float("inf")]
    start = found[()].compiled
    if start is None:
        # Something else may put right what fails without any option: nothing is known of those that fail alone.
        before = max(compiled, default=0.0)
        alone = {option: min(cycles, before) for option, cycles in alone.items()}
    else:
        before = start.profile.predicted_cycles

    def expected(options: Options) -> tuple[float, ...]:
        lost = [alone[option] - before for option in options]
        # What changes nothing alone changes little in company: all that holds such an option comes last.
        return (0 in lost, sum(lost), len(options))

    possible = [option for option in offered if alone[option] < float("inf")]
    every = (
        in_order(options)
        for count in range(2, len(possible) + 1)
        for options in combinations(possible, count)
        if not conflict(options)
    )
    yield from sorted(every, key=expected)


def judge_best(attempts: Sequence[Attempt], judge: Callable[[Options], Parity]) -> tuple[list[Attempt], Attempt | None]:
    """Judge attempts in their order until one passes.

    Returns:
        The attempts, with what was found out, and the one that passed; None where none did.
    """
    judged = list(attempts)
    for i, attempt in enumerate(attempts):
        if attempt.compiled is None:
            continue
        parity = judge(attempt.options)
        judged[i] = replace(attempt, parity=parity)
        if parity.stage is None:
            return judged, judged[i]
    return judged, None


def compile_attempt(
    case: Case,
    model: Model,
    toolchain: Toolchain,
    *,
    left_s: float,
    say: Callable[[str], None],
    timeout_s: float = STAGE_TIMEOUT_S,
) -> Attempt:
    """Compile a case, or find it compiled; a failure is an attempt as well.

    Args:
        case: what to compile.
        model: its checkpoint.
        toolchain: the compiler.
        left_s: of the search's budget, and so for each stage, but a little in any case.
        say: receives one line of progress at a time.
        timeout_s: for each stage, however much is left.
    """
    job = job_of(case, model, toolchain)
    try:
        bmodel = compile_graph(job, cache_folder(), say=say, timeout_s=min(max(left_s, _LEAST_S), timeout_s))
    except CompileError as error:
        return Attempt(options=case.options, compiled=None, stage=Stage(error.stage.value), message=str(error))
    return Attempt(options=case.options, compiled=bmodel.result)


def changing(offered: Iterable[Option], case: Case, model: Model, toolchain: Toolchain) -> list[Option]:
    """Those of *offered* that change anything: the others' flags are among those that the graph gets anyway."""

    def made_of(case: Case) -> tuple[object, ...]:
        job = job_of(case, model, toolchain)
        return job.variant, job.flags

    return [option for option in offered if made_of(replace(case, options=(option,))) != made_of(case)]


def fits_simulator(model: Model) -> bool:
    """Whether a checkpoint is small enough to be judged on the simulator."""
    return sum(array.size for array in model.arrays.values()) <= _SIMULATED_PARAMETERS


class ParityJudge:
    """Judges cases of one checkpoint as the suite ``parity`` does, each with an engine of its own."""

    def __init__(
        self,
        model: Model,
        toolchain: Toolchain,
        place: Place,
        limits: Limits,
        *,
        say: Callable[[str], None],
        timeout_s: float = STAGE_TIMEOUT_S,
    ) -> None:
        """*place* opens the engines, *limits* are the caps of the cases' precision, *timeout_s* limits each stage."""
        self._model = model
        self._toolchain = toolchain
        self._say = say
        self._timeout_s = timeout_s
        self._place = place
        self._limits = limits
        self._state = State.random(model.checkpoint.shape, seed=0, dtype=torch.float32).arrays()

    def judge(self, case: Case) -> Parity:
        """Compile it, or find it compiled, and run it; what the runtime refuses fails at the stage ``load``.

        Raises:
            LibraryMissing: there is no simulator, which says nothing about the case.
        """
        check = Check(limits=self._limits, stage=Stage.LOAD)
        oracle = oracle_for(self._model.checkpoint, case.quantization, case.options)
        try:
            job = job_of(case, self._model, self._toolchain)
            bmodel = compile_graph(job, cache_folder(), say=self._say, timeout_s=self._timeout_s)
            self._say(f"{case.id}: running on {self._place.label} …")
            with self._place.open([bmodel.path], embedding=embedding_for([case], self._model)) as engine:
                check.stage = Stage.RUN
                judge_from_zero_state(check, engine, case, self._model, oracle)
                check.stage = Stage.RUN
                judge_from_random_state(check, engine, case, self._model, oracle, self._state)
        except CompileError as error:
            return Parity(stage=Stage(error.stage.value), message=str(error), metrics={})
        except LibraryMissing:
            raise
        except (RuntimeFault, AssertionError) as error:
            return Parity(stage=check.stage, message=str(error), metrics=check.metrics)
        return Parity(stage=None, message="", metrics=check.metrics)
