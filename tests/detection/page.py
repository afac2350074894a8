"""What became of the faults, as docs/detection.md."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from harness.limits import load_limits
from tests.detection.sections import cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compile.spec import Quantization
    from harness.limits import Limits
    from tests.detection.detect import Cell, Detection
    from tests.detection.faults import Fault
    from tests.detection.good import Good
    from tests.detection.judge import Finding
    from tests.detection.tool_faults import ToolFault

_HEAD = """\
# Detection power

Written by `make detection`. Known faults are put into right targets on purpose, and the suites' own test functions
judge them with the caps that ship (`suites/limits.toml`): each fault should fail the check that is meant for it, at the
stage `numerics`, in words that lead to it. Right targets should pass everything.

Here an engine whose nets are computed in torch stands in the place of bmodels: decode, prefill 16 and prefill_all 16 of
the model that ships, float32 with the rounding of the precision after every operation (`tests/detection/`). Nothing was
compiled or simulated: what a compiler or a chip gets wrong by itself is not part of this page.
"""

_LEFT = """\
## What needs a bmodel

These faults have no counterpart in torch: an operation that the compiler moved from float32 to float16; products that
overflow float16 before the mask of a chunk; a flag of the compiler that changes numbers; BF16 compiled where F16 was
asked for; constants folded with other weights; inputs and outputs in another order; addresses reused while they are
still read; a launch that is not waited for; a bmodel that is truncated, or of another chip; nets that say two formats
of one state; memory of a board that is not coherent. The faults of formulas and weights above can also be compiled: a
graph variant with the same wrong piece, or the wrong tensors of `Fault.weights`: `tests/detection/bmodel_faults.py` has
50, which `make detection ARGS='--part bmodels'` compiles and runs on the simulator; until that has been done, this page
has no part about them.
"""


def page(
    detections: Sequence[Detection],
    tools: Sequence[tuple[ToolFault, str]],
    alarms: Sequence[tuple[Good, list[Finding]]],
    rows: Sequence[tuple[Fault, dict[Quantization, Cell]]],
) -> str:
    """The part of the page that is about targets in torch, and what is not about any target.

    *tools* and *alarms* come with the message or findings of each, empty where there was none.
    """
    known = [detection for detection in detections if detection.fault.undetectable]
    elsewhere = [detection for detection in detections if detection.fault.unseen]
    caught = sum(detection.caught for detection in detections) + sum(bool(message) for _, message in tools)
    false = sum(bool(findings) for _, findings in alarms)
    parts = [
        _HEAD,
        (
            f"**Caught {caught} of {len(detections) + len(tools) - len(known)}** ({len(known)} more known to be "
            f"undetectable), **false alarms {false} of {len(alarms)}**.\n"
        ),
        (
            "The first breach is that of the check that fails first in the order of a run, decode before prefill. The "
            "last column counts the checks that fail; `task` is asked only where the fault is meant for it.\n"
        ),
    ]
    for place, group in groupby(sorted(detections, key=_place), _place):
        parts += [
            f"## {place.capitalize()}\n",
            "| fault | what is wrong | precision | caught first by | first breach | checks |",
            "|---|---|---|---|---|---|",
            *(_row(detection) for detection in group),
            "",
        ]
    parts += [
        "## Fault by precision\n",
        (
            "The same faults at every precision that has caps, by the check that is meant for them: ✓, or the name of "
            "another check that sees the fault where the meant one does not. What is seen by none is below the caps of "
            "that precision, which right bmodels need: its KL divergence stands there, mean or else worst, as a share "
            "of the cap. Behind a fault that can be smaller stands the smallest magnitude that the suite `parity` sees "
            "with prefill_all, by bisection to about a seventh.\n"
        ),
        *_by_precision(rows),
        "",
        "## What the shipped checkpoint does not show\n",
        "These are caught with another checkpoint only; that the shipped one does not show them is checked as well.\n",
        *(f"- `{one.fault.name}`, with the checkpoint “{one.fault.model}”: {one.fault.unseen}." for one in elsewhere),
        "",
        "## Undetectable\n",
        *(f"- `{one.fault.name}`: {one.fault.undetectable}." for one in known),
        "",
        "## Faults of what measures\n",
        "No run of the suites can see these; the project's own tests catch them.\n",
        "| fault | what is wrong | caught by | at |",
        "|---|---|---|---|",
        *(f"| {fault.name} | {fault.wrong} | `{fault.test}` | {_code(message)} |" for fault, message in tools),
        "",
        "## Right targets\n",
        "| target | checkpoint | tokens a chunk | caps | false alarms |",
        "|---|---|---|---|---|",
        *(
            f"| {good.name} | {good.model} | {good.T} | {good.precision.value} | "
            f"{'; '.join(f'{f.check}: {f.message}' for f in findings) or 'none'} |"
            for good, findings in alarms
        ),
        "",
        _LEFT,
    ]
    return "\n".join(parts).rstrip() + "\n"


def _by_precision(rows: Sequence[tuple[Fault, dict[Quantization, Cell]]]) -> list[str]:
    limits, _ = load_limits()
    found = ["| fault | given | " + " | ".join(precision.value for precision in limits) + " |"]
    found.append("|---" * (2 + len(limits)) + "|")
    for fault, of in rows:
        given = f"{fault.magnitude.given:.3g} {fault.magnitude.unit}" if fault.magnitude else ""
        row = [_in_words(fault, of[precision], caps) if precision in of else "" for precision, caps in limits.items()]
        found.append(cells([f"`{fault.name}`", given, *row]))
    return found


def _in_words(fault: Fault, cell: Cell, caps: Limits) -> str:
    if not cell.caught_by:
        mean, worst = cell.metrics.get("kl_mean_nats"), cell.metrics.get("kl_worst_nats")
        share = mean / caps.kl_mean_nats if mean is not None else (worst or 0.0) / caps.kl_worst_nats
        return f"not seen: {share:.2g} of the cap"
    seen = "✓" if cell.caught_by == fault.meant else cell.caught_by
    return seen if cell.smallest is None else f"{seen} down to {cell.smallest:.2g}"


def _place(detection: Detection) -> str:
    return detection.fault.place.value


def _row(detection: Detection) -> str:
    fault, findings = detection.fault, detection.findings
    row = [f"`{fault.name}`", fault.wrong, fault.precision.value]
    if not findings:
        return cells([*row, "**not caught**", "", ""])
    first = findings[0]
    where = f"{first.check}, {first.case.partition('-')[0]}" if first.case else first.check
    if fault.model != "shipped":
        where += f" (checkpoint “{fault.model}”)"
    return cells([*row, where, first.message.partition(";")[0], str(len(findings))])


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else "**not caught**"
