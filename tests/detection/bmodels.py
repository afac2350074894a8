"""What the suites find in wrong bmodels, and in the right ones that stand beside them."""

from __future__ import annotations

import re
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.detection.bmodel_engine import BmodelDevice
from tests.detection.bmodel_faults import BmodelFault
from tests.detection.detect import bench
from tests.detection.good import cases

if TYPE_CHECKING:
    from compile.spec import GraphKind, Quantization
    from compile.toolchain import Toolchain
    from tests.detection.judge import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class BmodelDetection:
    """What became of a fault.

    Attributes:
        fault: that was put in.
        findings: of the check that is meant for it, one for each case that failed.
        compiled: graphs that were not in the cache.
        seconds: that it took.
    """

    fault: BmodelFault
    findings: tuple[Finding, ...]
    compiled: int
    seconds: float

    @property
    def caught(self) -> bool:
        """Whether each of its cases failed, at the stage that is meant, in words that lead to the fault."""
        good = [
            finding
            for finding in self.findings
            if finding.stage is self.fault.stage and re.search(self.fault.says, finding.message)
        ]
        return len(good) == len(self.fault.judged)


def detect(fault: BmodelFault, toolchain: Toolchain) -> BmodelDetection:
    """Compile what is wrong, and have the check that is meant for it judge it."""
    start = time.monotonic()
    judged = [case for case in cases(fault.precision) if case.graph.kind in fault.judged]
    with (
        BmodelDevice(toolchain, lambda case: fault.job_of(case, toolchain), fault.engine, fault.file) as device,
        fault.patches() if fault.patches else nullcontext(),
    ):
        findings = tuple(bench(fault.model).judge(device, judged, fault.meant))
    seconds = time.monotonic() - start
    return BmodelDetection(fault=fault, findings=findings, compiled=device.compiled, seconds=seconds)


@dataclass(frozen=True, slots=True)
class Control:
    """A check of a right bmodel that some fault is judged by as well: it must pass."""

    check: str
    kind: GraphKind
    precision: Quantization
    model: str

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.check}, {self.kind.value} {self.precision.value}, {self.model}"


def controls(faults: tuple[BmodelFault, ...]) -> list[Control]:
    """What must pass for these faults to mean anything, each once."""
    every = [Control(fault.meant, kind, fault.precision, fault.model) for fault in faults for kind in fault.judged]
    return list(dict.fromkeys(every))


def false_alarms(control: Control, toolchain: Toolchain) -> list[Finding]:
    """What the check finds wrong with a right bmodel."""
    right = BmodelFault(
        name="none", wrong="nothing", meant=control.check, judged=(control.kind,), model=control.model,
        precision=control.precision,
    )  # fmt: skip
    return list(detect(right, toolchain).findings)
