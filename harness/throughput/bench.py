"""What a test of the suite measures with: loads a case afresh, keeps every sample, tells the figures to the record."""

from __future__ import annotations

import math
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from harness.cases import prefills_of
from harness.device.health import remarks
from harness.throughput.measure import Stopwatch
from harness.throughput.plan import token_ids
from reports.schema import Stage
from runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from pytest_benchmark.fixture import BenchmarkFixture

    from harness.cases import Case
    from harness.check import Check
    from harness.run import SuiteRun
    from harness.throughput.plan import Plan
    from harness.throughput.sample import Sample, SampleFile

_WALL = "simulator_wall_"
_SIMULATOR = "simulator_"


class Bench:
    """The measurement of one case. On the simulator every figure says so in its name: it is none of the chip.

    Attributes:
        plan: how much is measured.
    """

    def __init__(self, run: SuiteRun, check: Check, case: Case, plan: Plan, file: SampleFile) -> None:
        self.plan = plan
        self._run = run
        self._check = check
        self._case = case
        self._file = file

    def load(self, *cases: Case) -> Stopwatch:
        """Load *cases* into a device that was just opened, and time that.

        Raises:
            CompileError: a graph does not compile.
            RuntimeFault: the bmodels do not load.
        """
        self._run.close()
        self._look("before")
        engine = self._run.engine(self._check, *cases)
        self.tell({"load_ms": 1000 * self._run.load_s})
        return Stopwatch(engine)

    def longest_prefill(self) -> list[Case]:
        """The case by which a depth is reached soonest: none where the grid has no prefill that goes with it."""
        return prefills_of(self._case, self._run.grid.cases)[-1:]

    def tokens(self, count: int) -> list[int]:
        """Fixed ids of the model's vocabulary."""
        return token_ids(self._run.model.checkpoint.shape.n_vocab, count)

    def keep(self, samples: Generator[Sample], *, count: int) -> list[Sample]:
        """Take samples as they are measured, and write each down before the next.

        Raises:
            AssertionError: another number than *count*, a time that is none, or logits that are not finite.
        """
        __tracebackhide__ = True
        kept = []
        with closing(samples):  # at once: a session that ends whenever its turn comes would disturb another's calls
            for sample in samples:
                self._file.add(self._case.id, sample)
                self._judge(sample)
                kept.append(sample)
        if len(kept) != count:
            raise AssertionError(f"{len(kept)} samples, but should be {count}")
        self._look("after")
        return kept

    def rounds(self, benchmark: BenchmarkFixture, watch: Stopwatch, net: str, tokens: Sequence[int]) -> None:
        """Have pytest-benchmark time calls of *net* with *tokens*, each behind those before, in place of our own clock.

        What they hold besides, its file tells: ``--benchmark-json``, ``--benchmark-autosave``.

        Raises:
            AssertionError: the logits of the last call are not finite.
        """
        __tracebackhide__ = True
        with Session(watch.engine) as session:
            logits = benchmark.pedantic(session.run, (net, tokens), rounds=self.plan.repeats, warmup_rounds=1)  # type: ignore[no-untyped-call]
        if not np.isfinite(logits).all():
            self._check.stage = Stage.NUMERICS
            raise AssertionError(f"logits are not finite [{net}, last of {self.plan.repeats} rounds]")
        benchmark.group = f"{len(tokens)} tokens"
        benchmark.extra_info |= {"target": self._run.place.label, "case": self._case.id, "tokens": len(tokens)}

    def tell(self, figures: Mapping[str, float]) -> None:
        """Put times and rates into the record."""
        self._check.metrics |= {(_WALL if self._run.place.simulated else "") + name: figures[name] for name in figures}

    def tell_memory(self, watch: Stopwatch) -> None:
        """Put the memory in use, on the device and at most in the worker, into the record."""
        memory = watch.engine.memory()
        prefix = _SIMULATOR if self._run.place.simulated else ""
        self._check.metrics[f"{prefix}host_memory_bytes"] = memory.host_peak_bytes
        if memory.device_bytes is not None:
            self._check.metrics[f"{prefix}device_memory_bytes"] = memory.device_bytes

    def _judge(self, sample: Sample) -> None:
        __tracebackhide__ = True
        if not sample.finite:
            self._check.stage = Stage.NUMERICS
            raise AssertionError(f"logits are not finite {_place(sample)}")
        if not 0 < sample.end_to_end_s < math.inf:
            self._check.stage = Stage.PERF
            raise AssertionError(f"{sample.end_to_end_s} s, but should be above zero and finite {_place(sample)}")

    def _look(self, when: str) -> None:
        """See how warm and how fast the chip is; below its full clock, the record says that its figures are low."""
        readings = self._run.place.readings()
        known = {reading.name: reading.value for reading in readings}
        metrics = self._check.metrics
        for name, key, worse in (
            ("chip_temperature", "chip_temperature_highest_c", max),
            ("tpu_clock", "tpu_clock_lowest_mhz", min),
        ):
            value = known.get(name)
            if isinstance(value, float):
                metrics[key] = worse(value, metrics.get(key, value))
        for remark in remarks(readings):
            note = f"{when} measuring {remark}: these figures are not those of the full clock"
            if note not in self._check.notes:
                self._check.notes.append(note)


def _place(sample: Sample) -> str:
    return f"[{sample.what.value} {sample.net}, repeat {sample.repeat}, {sample.behind} tokens behind]"
