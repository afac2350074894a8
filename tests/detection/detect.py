"""Which check catches a fault, and how small the fault may be."""

from __future__ import annotations

import math
import re
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING
from unittest.mock import patch

from compile.spec import GraphKind, Quantization
from harness.limits import load_limits
from reference.precision import Precision
from reports.schema import Stage
from tests.detection.engine import TorchDevice, TorchEngine
from tests.detection.faults import PARITY, RANDOM, Place
from tests.detection.formulas import Formulas
from tests.detection.good import cases, model
from tests.detection.judge import CHECKS, Bench, Finding

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

    from reference.checkpoint import Checkpoint
    from tests.detection.faults import Fault
    from tests.detection.good import Good

_FINE = 1.15  # a magnitude is found to about a seventh


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What became of a fault.

    Attributes:
        fault: that was put in.
        findings: the first of each check that failed.
        seen_by_shipped: whether the shipped checkpoint shows it too, where another is meant to.
    """

    fault: Fault
    findings: tuple[Finding, ...]
    seen_by_shipped: bool = False

    @property
    def caught(self) -> bool:
        """Whether the check that is meant for it failed at the stage of numbers, in words that lead to the fault."""
        return any(
            finding.check == self.fault.meant
            and finding.stage is Stage.NUMERICS
            and re.search(self.fault.says, finding.message)
            for finding in self.findings
        )

    @property
    def as_declared(self) -> bool:
        """Whether the fault's data tell the truth: caught, or not, and with the checkpoint that is named."""
        return self.caught != bool(self.fault.undetectable) and not self.seen_by_shipped


def detect(fault: Fault) -> Detection:
    """Put *fault* in and ask every check that could see it."""
    checks = _checks(fault)
    findings = []
    for check in checks:
        findings += list(_findings(fault, [check]))[:1]
    elsewhere = fault.model != "shipped" and any(True for _ in _findings(replace(fault, model="shipped"), checks))
    return Detection(fault=fault, findings=tuple(findings), seen_by_shipped=elsewhere)


def caught_by_the_meant(fault: Fault) -> Detection:
    """The same with the one check that is meant for it, for a quick look."""
    return Detection(fault=fault, findings=tuple(_findings(fault, [fault.meant])))


def false_alarms(good: Good) -> list[Finding]:
    """What the suites find wrong with a right target."""
    judged_by = bench(good.model)
    checkpoint = judged_by.model.checkpoint
    computes = dict.fromkeys(GraphKind, good.computes(checkpoint))
    device = TorchDevice(TorchEngine, checkpoint.shape, computes)
    return [
        finding
        for check in CHECKS
        if not check.startswith("tokenizer/")  # it knows of no target
        for finding in judged_by.judge(device, cases(good.precision, good.T), check)
    ]


@cache
def bench(name: str) -> Bench:
    """What the suites are given of a checkpoint: a name of `tests.detection.good.MODELS`."""
    return Bench(model(name))


def _checks(fault: Fault) -> list[str]:
    """The checks that could see a fault of its place; tasks, which are slow and blunt, only where they are meant."""
    if fault.place is Place.TOKENIZER:
        return [check for check in CHECKS if check.startswith("tokenizer/")]
    return [check for check in CHECKS if check.startswith(("parity/", "state/")) or check == fault.meant]


def _findings(fault: Fault, checks: Iterable[str]) -> Generator[Finding]:
    judged_by = bench(fault.model)
    with fault.patches() if fault.patches else nullcontext():
        device = _device(fault, judged_by.model.checkpoint)
        for check in checks:
            yield from judged_by.judge(device, cases(fault.precision), check)


def _device(fault: Fault, checkpoint: Checkpoint) -> TorchDevice:
    precision = rounding(fault.precision)
    wrong = replace(checkpoint, tensors=fault.weights(checkpoint)) if fault.weights else checkpoint
    right_net, wrong_net = Formulas(checkpoint, precision), fault.formulas(wrong, precision)
    computes = {kind: wrong_net if kind in fault.kinds else right_net for kind in GraphKind}
    return TorchDevice(fault.engine, checkpoint.shape, computes)


def rounding(quantization: Quantization) -> Precision | None:
    """How a precision rounds; F32 does not."""
    return None if quantization is Quantization.F32 else Precision(quantization.value)


def smallest(fault: Fault) -> float | None:
    """The smallest magnitude that the suite parity sees with prefill_all, from the given one down; None: not even that.

    By bisection of its logarithm.
    """
    assert fault.magnitude is not None
    seen, unseen = fault.magnitude.given, fault.magnitude.smallest
    if not _parity_sees(fault.at(seen)):
        return None
    while seen / unseen > _FINE:
        middle = math.sqrt(seen * unseen)
        if _parity_sees(fault.at(middle)):
            seen = middle
        else:
            unseen = middle
    return seen


def _parity_sees(fault: Fault) -> bool:
    judged_by = bench(fault.model)
    device = _device(fault, judged_by.model.checkpoint)
    alone = [case for case in cases(fault.precision) if case.graph.kind is GraphKind.PREFILL_ALL]
    return any(True for check in (RANDOM, PARITY) for _ in judged_by.judge(device, alone, check))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A fault at one precision.

    Attributes:
        caught_by: the check that is meant for it, or else the first that sees it; empty where none does.
        metrics: the worst that the check that is meant for it found.
        smallest: magnitude that is still seen; None where it has none, or none is.
    """

    caught_by: str
    metrics: dict[str, float]
    smallest: float | None


def by_precision(fault: Fault) -> dict[Quantization, Cell]:
    """The fault at every precision that has caps, and where it is one; empty for what has no precision."""
    if fault.place is Place.TOKENIZER:
        return {}
    return {
        precision: _cell(replace(fault, precision=precision)) for precision in fault.only or bench("shipped").limits
    }


def _cell(fault: Fault) -> Cell:
    judged_by = bench(fault.model)
    with fault.patches() if fault.patches else nullcontext():
        device = _device(fault, judged_by.model.checkpoint)
        results = list(judged_by.results(device, cases(fault.precision), fault.meant))
        metrics: dict[str, float] = {}
        for result in results:
            metrics |= {name: max(value, metrics.get(name, value)) for name, value in result.metrics.items()}
        caught_by = fault.meant if any(result.message for result in results) else ""
        if not caught_by:
            every = (
                finding
                for check in _checks(fault)
                for finding in judged_by.judge(device, cases(fault.precision), check)
            )
            caught_by = next((finding.check for finding in every), "")
    return Cell(caught_by=caught_by, metrics=metrics, smallest=smallest(fault) if fault.magnitude else None)


@contextmanager
def judge_with(limits: Path | None) -> Generator[None]:
    """While entered, the caps are those of another file; None for those that ship."""
    bench.cache_clear()
    with patch("tests.detection.judge.load_limits", partial(load_limits, limits)) if limits else nullcontext():
        yield
    bench.cache_clear()
