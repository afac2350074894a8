"""A gate in words, for the terminal."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from harness.gate.details import details_command
from harness.gate.finding import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.gate.compare import Report
    from harness.gate.finding import Finding
    from harness.gate.sides import Side

MOST = 20
"""How many findings of a kind are shown, where not all are asked for."""

_HEADINGS = {
    Kind.REGRESSION: "REGRESSION",
    Kind.NOT_COMPARABLE: "NOTHING MEASURED OR NOT COMPARABLE",
    Kind.INFRA: "DEVICE OR INFRASTRUCTURE",
    Kind.STALE: "STALE EXPECTATIONS",
    Kind.IMPROVED: "IMPROVED",
    Kind.SHOWN: "CHANGED, NO VERDICT",
}


def report_words(report: Report, *, most: int | None = MOST) -> str:
    """Tell what was compared, every finding by kind (at most *most* of each; None for all), and the exit code."""
    return "\n".join(_lines(report, most))


def _lines(report: Report, most: int | None) -> Iterator[str]:
    for name, side in (("BASE", report.base), ("NEW", report.new)):
        yield f"{name:<9} {side.path}: {_side_words(side)}"
    yield f"compared  {_compared_words(report)}"
    for note in report.notes:
        yield f"note      {note}"
    for kind in Kind:
        found = [finding for finding in report.findings if finding.kind is kind]
        if found:
            yield ""
            yield f"{_HEADINGS[kind]}: {len(found)}"
            for finding in found[:most]:
                yield from _finding_lines(finding, report)
            if most is not None and len(found) > most:
                yield f"  … and {len(found) - most} more; --all shows them"
    yield ""
    tests = f", {report.tests} of them with chance in them" if report.tests else ""
    yield f"{report.checks} checks measured on both sides, {report.values} values under a rule{tests}"
    yield _verdict(report)


def _side_words(side: Side) -> str:
    runs = [launch.file.run for launch in side.launches]
    told = [f"{len(runs)} run{'s' if len(runs) != 1 else ''}"]
    if runs:
        first = runs[0]
        told += [f"on {first.where}", f"TPU-MLIR {first.toolchain.get('version', '?')}"]
        told += [f"checkpoint {first.checkpoint.get('name', '?')}"]
    if side.lambada:
        told.append(f"{len(side.lambada)} LAMBADA results")
    return ", ".join(told)


def _compared_words(report: Report) -> str:
    found = report.comparability
    if found.refused:
        return "nothing: the runs differ in more than the thing compared"
    if not report.base.launches or not report.new.launches:
        return "LAMBADA results alone" if report.base.lambada and report.new.lambada else "nothing: a side has no runs"
    if not found.differences:
        return "the same thing with itself: the manifests do not differ"
    told = [f"{one.name} {one.base} -> {one.new}" for one in found.differences if one.part != "packages"]
    packages = len(found.differences) - len(told)
    told += [f"{packages} packages"] if packages else []
    return "\n          ".join(told)


def _finding_lines(finding: Finding, report: Report) -> Iterator[str]:
    key = finding.key
    check = f"{key.suite}/{key.check}" if key.suite else ""
    if where := "  ".join(filter(None, [key.case, check, finding.metric])):
        yield f"  {where}"
    values = f"{finding.base} -> {finding.new}" if finding.base or finding.new else ""
    limit = f"limit {finding.limit}" if finding.limit else ""
    if told := ", ".join(filter(None, [values, limit])):
        yield f"    {told}"
    if finding.note:
        yield f"    {finding.note}"
    if command := details_command(finding, report.base, report.new):
        yield f"    $ {shlex.join(command)}"


def _verdict(report: Report) -> str:
    holding = [kind for kind in Kind if kind.exit_code and _has(report.findings, kind)]
    if not holding:
        return "exit code 0: pass"
    first, *rest = [f"{kind.exit_code}: {kind.value}" for kind in holding]
    return f"exit code {first}" + (f"; also {', '.join(rest)}" if rest else "")


def _has(findings: Sequence[Finding], kind: Kind) -> bool:
    return any(finding.kind is kind for finding in findings)
