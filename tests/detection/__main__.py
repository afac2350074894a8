"""``python -m tests.detection``: puts every fault in, runs every good target, and writes docs/detection.md.

Options: ``--part`` NAME runs one part, ``--only`` NAME one fault (and writes nothing), ``--limits`` FILE judges with
other caps (and writes nothing): with caps that are too loose, faults pass, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from compile.release import DEFAULT_RELEASE
from compile.toolchain import find
from harness.paths import cache_folder
from tests.detection import bmodels, mutants, sections
from tests.detection.bmodel_faults import BMODEL_FAULTS
from tests.detection.detect import by_precision, detect, false_alarms, judge_with
from tests.detection.faults import FAULTS
from tests.detection.good import GOOD
from tests.detection.page import page
from tests.detection.tool_faults import TOOL_FAULTS, judge

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = Path(__file__).parents[2] / "docs" / "detection.md"


@dataclass
class Tally:
    """What is to be told at the end."""

    caught: int = 0
    faults: int = 0
    alarms: int = 0
    right: int = 0
    wrong: list[str] = field(default_factory=list)

    def fault(self, name: str, *, caught: bool, as_declared: bool) -> None:
        """Of a fault that must be caught, or is known not to be."""
        if caught or not as_declared:
            self.caught += caught
            self.faults += 1
        self._say("caught" if caught else "not caught", name, as_declared=as_declared)

    def good(self, name: str, *, alarm: bool) -> None:
        """Of a right target."""
        self.alarms += alarm
        self.right += 1
        self._say("false alarm" if alarm else "passed", name, as_declared=not alarm)

    def _say(self, word: str, name: str, *, as_declared: bool) -> None:
        say(f"{word:>11}  {name}")
        if not as_declared:
            self.wrong.append(name)


def say(line: str) -> None:
    """Show a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def targets(tally: Tally, only: str) -> str:
    """Wrong targets computed in torch, and the project's own tests with faults of tools."""
    alarms, detections, tools = [], [], []
    for good in GOOD if not only else ():
        alarms.append((good, false_alarms(good)))
        tally.good(good.name, alarm=bool(alarms[-1][1]))
    for fault in FAULTS:
        if only not in {"", fault.name}:
            continue
        detection = detect(fault)
        detections.append(detection)
        tally.fault(fault.name, caught=detection.caught, as_declared=detection.as_declared)
    for tool in TOOL_FAULTS:
        if only not in {"", tool.name}:
            continue
        right, wrong = judge(None, *tool.meant), judge(tool, *tool.meant)
        tools.append((tool, "" if right else wrong))
        tally.fault(tool.name, caught=bool(wrong and not right), as_declared=bool(wrong and not right))
    if only:
        return ""
    say("fault by precision …")
    rows = [(fault, found) for fault in FAULTS if (found := by_precision(fault))]
    return page(detections, tools, alarms, rows)


def compiled(tally: Tally, only: str) -> str:
    """Wrong bmodels on the simulator, and right ones."""
    toolchain, start = find(DEFAULT_RELEASE, cache_folder()), time.monotonic()
    faults = tuple(fault for fault in BMODEL_FAULTS if only in {"", fault.name})
    alarms, detections = [], []
    for control in bmodels.controls(faults):
        alarms.append((control, bmodels.false_alarms(control, toolchain)))
        tally.good(control.name, alarm=bool(alarms[-1][1]))
    for fault in faults:
        detections.append(bmodels.detect(fault, toolchain))
        tally.fault(f"{fault.name}, compiled", caught=detections[-1].caught, as_declared=detections[-1].caught)
        if not detections[-1].caught:
            found = [f"{finding.stage}, {finding.message}" for finding in detections[-1].findings]
            say(f"{'':>13}should fail {fault.meant} in words like {fault.says!r}; {'; '.join(found) or 'it passed'}")
    return sections.bmodels(detections, alarms, time.monotonic() - start)


def mutated(tally: Tally, only: str) -> str:
    """Random changes of the exported graphs."""
    fates = []
    for mutant in mutants.all_mutants():
        if only not in {"", mutant.name}:
            continue
        fates.append(mutants.fate(mutant))
        if not fates[-1].explained or only:
            tally.fault(mutant.name, caught=fates[-1].finding is not None, as_declared=fates[-1].explained)
    of = Counter(fate.finding is not None for fate in fates)
    say(f"mutants: {of[True]} of {len(fates)} caught, {of[False]} survivors, "
        f"{sum(not fate.explained for fate in fates)} of them unexplained")  # fmt: skip
    return sections.mutants(fates)


PARTS = {"targets": targets, "mutants": mutated, "bmodels": compiled}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 where every fault and every good target came out as its data say, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.detection", description=__doc__)
    parser.add_argument("--part", choices=[*PARTS], action="append", help="one part in place of all; may be repeated")
    parser.add_argument("--only", default="", metavar="NAME", help="one fault, of every part that has it")
    parser.add_argument("--limits", type=Path, help="caps in place of suites/limits.toml")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the tensors are too small to share
    tally = Tally()
    with judge_with(options.limits):
        for name in options.part or PARTS:
            text = PARTS[name](tally, options.only)
            if not options.only and options.limits is None:
                PAGE.write_text(sections.put(PAGE.read_text(encoding="utf-8"), name, text), encoding="utf-8")
    for name in tally.wrong:
        say(f"not as declared: {name}")
    say(f"caught {tally.caught} of {tally.faults}, false alarms {tally.alarms} of {tally.right}")
    return int(bool(tally.wrong))


if __name__ == "__main__":
    sys.exit(main())
