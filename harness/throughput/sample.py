"""One call and what it took: the raw material of every figure, kept as it was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path


class What(Enum):
    """What was called."""

    FIRST_CALL = "first-call"  # a net, for the first time since it was loaded
    CHUNK = "chunk"  # a prefill net
    PROMPT = "prompt"  # all nets that a prompt takes, one after another
    OUTPUT = "output"  # a step of decode behind that prompt
    STEP = "step"  # a step of decode in a window


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One call.

    Attributes:
        what: was called.
        net: its name; empty for a prompt, which takes several calls.
        tokens: fed in this call.
        behind: tokens that the session had taken before.
        repeat: counts from 0 on.
        end_to_end_s: from the call to its logits on the host.
        launch_s: from the first launch to the synchronisation, in the worker; None for a prompt.
        device_s: that the chip computed, as its driver counts; None where it does not.
        finite: whether every logit was.
    """

    what: What
    net: str
    tokens: int
    behind: int
    repeat: int
    end_to_end_s: float
    launch_s: float | None
    device_s: float | None
    finite: bool


class SampleFile:
    """The samples of a run, ``samples.jsonl`` beside its records: a line each, written before the next call."""

    def __init__(self, folder: Path, *, target: str, simulated: bool) -> None:
        self._path = folder / "samples.jsonl"
        self._origin = {"target": target, "simulated": simulated}

    def add(self, case: str, sample: Sample) -> None:
        """Append a sample."""
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode({"case": case, **self._origin, **asdict(sample)}) + b"\n")
