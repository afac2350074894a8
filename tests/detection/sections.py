"""The parts of docs/detection.md that are not about torch targets, and how a part finds its place on the page."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from tests.detection.mutations import SEED, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.detection.bmodels import BmodelDetection, Control
    from tests.detection.judge import Finding
    from tests.detection.mutants import Fate

_ORDER = ("targets", "bmodels", "mutants")


def put(text: str, name: str, part: str) -> str:
    """Replace one part of the page; a part that is not there yet gets its place in the order."""
    parts = dict(re.findall(r"<!-- part: (\w+) -->\n(.*?)(?=<!-- part: |\Z)", text, re.DOTALL))
    parts[name] = part.rstrip() + "\n\n"
    return "".join(f"<!-- part: {key} -->\n{parts[key]}" for key in _ORDER if key in parts).rstrip() + "\n"


def bmodels(
    detections: Sequence[BmodelDetection], alarms: Sequence[tuple[Control, list[Finding]]], seconds: float
) -> str:
    """Wrong bmodels; *alarms* are those of right ones."""
    caught = sum(detection.caught for detection in detections)
    inside = sum(detection.fault.compiled for detection in detections)
    missing = sum(detection.compiled for detection in detections)
    false = sum(bool(findings) for _, findings in alarms)
    rows = [_bmodel_row(detection) for detection in detections]
    return "\n".join(
        [
            "# Faults as bmodels\n",
            (
                f"The same on the simulator: TPU-MLIR compiles what is wrong (`tests/detection/bmodel_faults.py`), the "
                f"simulator runs it, and the check that is meant for it judges with the caps that ship. {inside} "
                f"faults are inside a bmodel, {len(detections) - inside} around right ones. "
                f"**Caught {caught} of {len(detections)}, false alarms {false} of {len(alarms)}**; "
                f"{seconds / 60:.0f} minutes with {missing} compiles among them.\n"
            ),
            "| fault | what is wrong | judged | caught by | at stage | message |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "Right bmodels of the same checkpoints, by the same checks:\n",
            *(
                f"- {control.name}: {'; '.join(finding.message for finding in findings) or 'passed'}"
                for control, findings in alarms
            ),
            "",
        ]
    )


def _bmodel_row(detection: BmodelDetection) -> str:
    fault = detection.fault
    judged = ", ".join(f"{kind.value} {fault.precision.value}" for kind in fault.judged)
    name = f"`{fault.name}`" + ("" if fault.compiled else " (around)")
    if fault.model != "shipped":
        judged += f", checkpoint “{fault.model}”"
    if not detection.findings:
        return cells([name, fault.wrong, judged, "**not caught**", "", ""])
    found = detection.findings[0]
    stage = found.stage.value if found.stage else ""
    message = found.message.splitlines()[0].partition(";")[0]
    message = re.sub(r"/\S*/", "", message)  # no folders of the machine that it was compiled on
    return cells([name, fault.wrong, judged, found.check if detection.caught else "**another**", stage, message])


def mutants(fates: Sequence[Fate]) -> str:
    """Random changes of the exported graphs."""
    caught = [fate for fate in fates if fate.finding]
    survivors = [fate for fate in fates if fate.survivor]
    drawn, of_caught = (Counter(fate.mutant.kind for fate in some) for some in (fates, caught))
    reasons = Counter(_class(fate) for fate in survivors)
    redrawn = sum(fate.mutant.redrawn for fate in fates)
    checks = Counter(fate.finding.check for fate in fates if fate.finding)
    return "\n".join(
        [
            "# Mutants of the exported graphs\n",
            (
                f"{len(fates)} random changes (seed {SEED}) of the ONNX graphs of the model that ships - decode, "
                "prefill 16, prefill_all 16 - each run by ONNX Runtime in the place of the right graph and judged by "
                "the suites `parity` and `state` with the caps of F16, until the first check fails "
                "(`tests/detection/mutations.py`). A change that makes no graph which runs is drawn anew, here "
                f"{redrawn} times: no comparison of numbers is needed for it.\n"
            ),
            (
                f"**Caught {len(caught)} of {len(fates)}; {len(survivors)} survivors, "
                f"{sum(not fate.explained for fate in fates)} of them unexplained.** "
                "A survivor is compared with the right graph over 24 random calls, from zero and from random states: "
                "it is equivalent where every number is the same, or apart by no more than float32 rounding; where it "
                "is not, all distances must be below the caps, and stand there; up to twice a cap it depends on the "
                "tokens whether a check fails. One that is further off, and yet passes the suites, shows that their "
                "prompts are too few, and fails `make detection`.\n"
            ),
            "| change | drawn | caught | survivors |",
            "|---|---|---|---|",
            *(
                f"| {kind.value} | {drawn[kind]} | {of_caught[kind]} | {drawn[kind] - of_caught[kind]} |"
                for kind in Kind
            ),
            "",
            f"First caught by: {', '.join(f'{check} {count}' for check, count in checks.most_common())}.\n",
            f"Survivors: {', '.join(f'{reason} {count}' for reason, count in reasons.most_common())}.\n",
            "| survivor | change | why no check sees it |",
            "|---|---|---|",
            *(_survivor_row(fate) for fate in survivors),
            "",
        ]
    )


def _class(fate: Fate) -> str:
    assert fate.survivor is not None
    return fate.survivor.reason.partition(":")[0] or "unexplained"


def _survivor_row(fate: Fate) -> str:
    assert fate.survivor is not None
    return cells([f"`{fate.mutant.name}`", f"`{fate.mutant.what}`", fate.survivor.reason or "**unexplained**"])


def cells(row: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
