"""The compiler's own timeline of a static bmodel: predicted cycles, bytes moved, instructions.

TPU-MLIR writes it with every static compile (``compiler_profile_0.txt``); one cycle is one nanosecond of BM1684X. It is
a prediction, exact from run to run of one release, and no measurement.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

_TOTAL = re.compile(r"^API_END total_cycle:(\d+)\|b:(\d+)\|g:(\d+)", re.MULTILINE)
_BYTES = re.compile(
    r"^GDMA SUMMARY : \|dr\[0\] S2L:(\d+)\|dr\[1\] L2S:(\d+)\|dr\[2\] S2S:(\d+)\|dr\[3\] L2L:(\d+)", re.MULTILINE
)
_USAGE = re.compile(r"^DDR BW USAGE : ", re.MULTILINE)
_FLOPS = re.compile(r"^flops: (\d+), runtime: ", re.MULTILINE)


class ProfileError(ValueError):
    """A profile that does not look like one: a dynamic compile, or a release that writes another format."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of one static graph, as predicted by the compiler."""

    predicted_cycles: int
    tiu_instructions: int  # the compute engine's
    gdma_instructions: int  # the transfer engine's
    ddr_read_bytes: int  # DDR to local memory
    ddr_write_bytes: int  # local memory to DDR
    ddr_copy_bytes: int  # DDR to DDR
    flops: int

    @property
    def predicted_ms(self) -> float:
        """Milliseconds at the 1 GHz that the compiler assumes."""
        return self.predicted_cycles / 1e6


def read_profile(path: Path) -> Profile:
    """Read the totals of a profile; several subnets in one file are added up.

    Raises:
        ProfileError: the file is missing, empty, or in another format.
    """
    if not path.is_file():
        raise ProfileError(f"{path}: the compile left no profile; a static compile writes one")
    return parse_profile(path.read_text(errors="replace"), str(path))


def parse_profile(text: str, source: str) -> Profile:
    """The totals in a profile's text; *source* is its name in an error."""
    totals, moved, flops = (pattern.findall(text) for pattern in (_TOTAL, _BYTES, _FLOPS))
    # A graph that computes nothing, such as an embedding alone, has no line of flops, but ends as all do.
    if not totals or len(totals) != len(moved) or not (flops or _USAGE.search(text)):
        raise ProfileError(
            f"{source}: found {len(totals)} API_END, {len(moved)} GDMA SUMMARY and {len(flops)} flops lines, "
            "but should have one each per subnet: a dynamic compile, or a release that writes another format"
        )
    cycles, tiu, gdma = (sum(int(row[i]) for row in totals) for i in range(3))
    read, written, copied = (sum(int(row[i]) for row in moved) for i in range(3))
    return Profile(
        predicted_cycles=cycles,
        tiu_instructions=tiu,
        gdma_instructions=gdma,
        ddr_read_bytes=read,
        ddr_write_bytes=written,
        ddr_copy_bytes=copied,
        flops=sum(map(int, flops)),
    )
