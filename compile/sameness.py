"""Whether two compiles made the same: bmodels without their date, and what differs in a finished compile."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from compile.stages import read_progress

if TYPE_CHECKING:
    from pathlib import Path

_HEADER = 64  # magic, the header's size at byte 8, room for more; what follows is a flatbuffer of that size
_CTIME = re.compile(rb"[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4}\n")


def undated_sha256(bmodel: Path) -> str:
    """SHA-256 of a bmodel with zeros for the moment of its making, which its description has as text.

    Of two compiles of the same inputs by TPU-MLIR 1.30.2 nothing else differs.
    """
    with bmodel.open("rb") as file:
        header = file.read(_HEADER)
        description = file.read(int.from_bytes(header[8:12], "little"))
        digest = hashlib.sha256(header)
        digest.update(_CTIME.sub(lambda found: bytes(len(found[0])), description))
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def differences(one: Path, other: Path) -> tuple[str, ...]:
    """What two compiles made that is not the same, stage by stage; nothing where all is, but for dates.

    The first stage that is named is the one to look at: what comes after was made from other inputs.

    Args:
        one: the folder of a finished compile.
        other: another of the same job.
    """
    sides = [read_progress(folder) for folder in (one, other)]
    found = []
    for side, folder in zip(sides, (one, other), strict=True):
        if side is None:
            return (f"{folder} does not say what its stages made",)
    first, second = (
        {(done.stage, file.name): file.sha256 for done in side.done for file in done.artefacts}
        for side in sides
        if side is not None
    )
    for stage, name in dict.fromkeys([*first, *second]):
        if name.endswith(".bmodel"):
            if undated_sha256(one / name) != undated_sha256(other / name):
                found.append(f"{stage.value}: {name}, also without its date")
        elif first.get((stage, name)) != second.get((stage, name)):
            found.append(f"{stage.value}: {name}")
    return tuple(found)
