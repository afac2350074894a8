"""Caps from good runs: the worst value of each metric, beside what ``suites/limits.toml`` rests on."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from compile.options import Option
from compile.spec import Quantization
from harness.cases import CaseError, parse_case
from harness.limits import CAPS, RATIOS, Limits, wrong_caps
from reports.schema import Outcome, RecordsError, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from reports.schema import Record, RunFile

METRICS = (*CAPS, *RATIOS)

HARD = "hard_weights"
"""The check whose weights are hard on purpose."""


class CalibrationError(ValueError):
    """Runs that nothing can be learnt from, or caps that they do not allow: says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Worst:
    """The worst value of a metric, and where it was."""

    value: float
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One metric of one precision.

    Attributes:
        found: the worst of the runs.
        before: what the file says of good runs; None where it says nothing.
        cap: that the file has.
    """

    quantization: Quantization
    metric: str
    found: Worst
    before: float | None
    cap: float

    @property
    def times(self) -> float:
        """How many times the worst good value the cap is."""
        return self.cap / self.found.value if self.found.value else math.inf


def good_run(path: Path) -> RunFile:
    """Read a run that may teach: it came to its end, and every check passed or was skipped.

    Raises:
        CalibrationError: it did not.
    """
    file = path / "records.jsonl" if path.is_dir() else path
    try:
        run = read(file)
    except (OSError, RecordsError) as error:
        raise CalibrationError(f"{path}: should be a run's folder: {error}") from error
    if run.end is None:
        raise CalibrationError(f"{path}: the run was interrupted: pytest suites/ --resume {path}")
    bad = [record for record in run.records if record.outcome not in {Outcome.PASSED, Outcome.SKIPPED}]
    if bad:
        first = " ".join(filter(None, (bad[0].case, bad[0].suite, bad[0].check)))
        raise CalibrationError(f"{path}: {len(bad)} checks did not pass, such as {first}: no good run")
    return run


def lines(runs: Iterable[RunFile], limits: Mapping[Quantization, Limits]) -> list[Line]:
    """Hold the worst values of good *runs* beside the file's, by precision and metric."""
    worst: dict[tuple[Quantization, str], Worst] = {}
    for run in runs:
        for record in run.records:
            quantization = _precision(record)
            if quantization is None:
                continue
            where = f"{record.case} {record.suite}/{record.check}, {run.run.checkpoint['name']}, {run.run.id}"
            for metric in METRICS:
                if record.check == HARD and metric.startswith("kl_"):
                    continue  # they have caps of their own
                value = record.metrics.get(metric)
                key = quantization, metric
                if value is not None and (key not in worst or value > worst[key].value):
                    worst[key] = Worst(value, where)
    return [
        Line(
            quantization=quantization,
            metric=metric,
            found=worst[quantization, metric],
            before=of.worst_good.get(metric),
            cap=getattr(of, metric),
        )
        for quantization, of in limits.items()
        for metric in METRICS
        if (quantization, metric) in worst
    ]


def recalibrated(text: str, found: Iterable[Line], *, replace: bool) -> str:
    """The file with the worst good values that the runs teach; all else stays as it is written.

    Args:
        text: of the file.
        found: the runs' values.
        replace: take them as they are. Otherwise a value is only raised: few runs say nothing of the hardest case.

    Raises:
        CalibrationError: with these values a cap is above what is allowed, or its loosening has no reason.
    """
    for line in found:
        value = rounded_up(line.found.value)
        if replace or line.before is None or value > line.before:
            text = _put(text, f"{line.quantization.value}.worst_good", line.metric, value)
    problems = [
        f"[{name}] {problem}"
        for name, table in msgspec.toml.decode(text).items()
        if name in {one.value for one in Quantization}
        for problem in wrong_caps(msgspec.convert(table, Limits))
    ]
    if problems:
        raise CalibrationError("nothing is written:\n" + "\n".join(f"  {problem}" for problem in problems))
    return text


def rounded_up(value: float) -> float:
    """To two digits, never below *value*: what was measured must pass."""
    if not value:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    digits = math.ceil(value / step * (1 - 1e-12))
    return float(f"{digits * step:.1e}")


def _precision(record: Record) -> Quantization | None:
    try:
        case = parse_case(record.case)
    except CaseError:
        return None  # of no graph, or of a variant that is not there any more
    return None if Option.F16_STATE in case.options else case.quantization  # that has caps of its own


def _put(text: str, table: str, key: str, value: float) -> str:
    """Write *value* into a table of the file, in place of what is there or at the table's head."""
    head = re.search(rf"^\[{re.escape(table)}\][^\n]*\n", text, re.MULTILINE)
    if head is None:
        raise CalibrationError(f"the file has no table [{table}]: add it, empty")
    end = re.compile(r"^\[", re.MULTILINE).search(text, head.end())
    inside = text[head.end() : end.start() if end else len(text)]
    written, changes = re.subn(rf"^{key}\s*=[^\n#]*", f"{key} = {value:.1e}", inside, flags=re.MULTILINE)
    if not changes:
        written = f"{key} = {value:.1e}\n{inside}"
    return text[: head.end()] + written + text[head.end() + len(inside) :]
