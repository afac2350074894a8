"""``python -m tests.detection``: puts every fault in, runs every good target, and writes docs/detection.md."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.detection.detect import detect, false_alarms
from tests.detection.faults import FAULTS
from tests.detection.good import GOOD
from tests.detection.page import page
from tests.detection.tool_faults import TOOL_FAULTS, judge

PAGE = Path(__file__).parents[2] / "docs" / "detection.md"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Return 0 where every fault and every good target came out as its data say."""
    torch.set_num_threads(1)  # the tensors are too small to share
    alarms, detections, tools = [], [], []
    for good in GOOD:
        alarms.append((good, false_alarms(good)))
        _say(f"{'false alarm' if alarms[-1][1] else 'passed':>11}  {good.name}")
    for fault in FAULTS:
        detection = detect(fault, bisect=True)
        detections.append(detection)
        _say(f"{'caught' if detection.caught else 'not caught':>11}  {fault.name}")
    for fault in TOOL_FAULTS:
        right, wrong = judge(None, *fault.meant), judge(fault, *fault.meant)
        tools.append((fault, "" if right else wrong))
        _say(f"{'caught' if wrong and not right else 'not caught':>11}  {fault.name}")
    PAGE.write_text(page(detections, tools, alarms), encoding="utf-8")
    wrong = [detection.fault.name for detection in detections if not detection.as_declared]
    wrong += [fault.name for fault, message in tools if not message]
    wrong += [good.name for good, findings in alarms if findings]
    for name in wrong:
        _say(f"not as declared: {name}")
    caught = sum(detection.caught for detection in detections) + sum(bool(message) for _, message in tools)
    undetectable = sum(bool(detection.fault.undetectable) for detection in detections)
    count = len(detections) + len(tools) - undetectable
    known = f" ({undetectable} more are known to be undetectable)" if undetectable else ""
    _say(f"caught {caught} of {count}{known}, false alarms {sum(bool(f) for _, f in alarms)} of {len(alarms)}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
