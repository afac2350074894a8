"""Which check catches a fault, and how small the fault may be."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from compile.spec import GraphKind
from reference.precision import Precision
from reports.schema import Stage
from tests.detection.engine import TorchDevice, TorchEngine
from tests.detection.faults import PARITY, RANDOM, Place
from tests.detection.formulas import Formulas
from tests.detection.good import cases, model
from tests.detection.judge import CHECKS, Bench, Finding

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

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
        smallest: magnitude that is still seen; None where it has none.
    """

    fault: Fault
    findings: tuple[Finding, ...]
    seen_by_shipped: bool = False
    smallest: float | None = None

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


def detect(fault: Fault, *, bisect: bool = False) -> Detection:
    """Put *fault* in and ask every check that could see it; with *bisect*, also how small it may be."""
    checks = _checks(fault)
    findings = []
    for check in checks:
        findings += list(_findings(fault, [check]))[:1]
    elsewhere = fault.model != "shipped" and any(True for _ in _findings(replace(fault, model="shipped"), checks))
    smallest = _smallest(fault) if bisect and fault.magnitude and findings else None
    return Detection(fault=fault, findings=tuple(findings), seen_by_shipped=elsewhere, smallest=smallest)


def caught_by_the_meant(fault: Fault) -> Detection:
    """The same with the one check that is meant for it, for a quick look."""
    return Detection(fault=fault, findings=tuple(_findings(fault, [fault.meant])))


def false_alarms(good: Good) -> list[Finding]:
    """What the suites find wrong with a right target."""
    bench = _bench(good.model)
    checkpoint = bench.model.checkpoint
    computes = dict.fromkeys(GraphKind, good.computes(checkpoint))
    device = TorchDevice(TorchEngine, checkpoint.shape, computes)
    return [
        finding
        for check in CHECKS
        if not check.startswith("tokenizer/")  # it knows of no target
        for finding in bench.judge(device, cases(good.precision, good.T), check)
    ]


@cache
def _bench(name: str) -> Bench:
    return Bench(model(name))


def _checks(fault: Fault) -> list[str]:
    """The checks that could see a fault of its place; tasks, which are slow and blunt, only where they are meant."""
    if fault.place is Place.TOKENIZER:
        return [check for check in CHECKS if check.startswith("tokenizer/")]
    return [check for check in CHECKS if check.startswith(("parity/", "state/")) or check == fault.meant]


def _findings(fault: Fault, checks: Iterable[str]) -> Generator[Finding]:
    bench = _bench(fault.model)
    with fault.patches() if fault.patches else nullcontext():
        device = _device(fault, bench.model.checkpoint)
        for check in checks:
            yield from bench.judge(device, cases(fault.precision), check)


def _device(fault: Fault, checkpoint: Checkpoint) -> TorchDevice:
    precision = Precision(fault.precision.value)
    wrong = replace(checkpoint, tensors=fault.weights(checkpoint)) if fault.weights else checkpoint
    right_net, wrong_net = Formulas(checkpoint, precision), fault.formulas(wrong, precision)
    computes = {kind: wrong_net if kind in fault.kinds else right_net for kind in GraphKind}
    return TorchDevice(fault.engine, checkpoint.shape, computes)


def _smallest(fault: Fault) -> float:
    """The smallest magnitude that the suite parity sees, from the given one down, by bisection of its logarithm."""
    assert fault.magnitude is not None
    seen, unseen = fault.magnitude.given, fault.magnitude.smallest
    while seen / unseen > _FINE:
        middle = math.sqrt(seen * unseen)
        if any(True for _ in _findings(fault.at(middle), (PARITY, RANDOM))):
            seen = middle
        else:
            unseen = middle
    return seen
