"""The header of a bmodel file. Runs on Python 3.8."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from runtime.faults import BadBmodel

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = 0xFF55AAEE
HEADER = struct.Struct("<IIIQ44x")  # magic; lengths in bytes of header, description and binary


def check_is_bmodel(path: Path) -> None:
    """See that *path* begins like a bmodel and is as long as it says.

    Raises:
        BadBmodel: it is not; the message says how.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEADER.size)
        size = path.stat().st_size
    except OSError as error:
        raise BadBmodel(f"{path} cannot be read: {error.strerror}") from error
    if len(head) < HEADER.size:
        raise BadBmodel(f"{path} is no bmodel: it has {size} bytes, the header of one alone has {HEADER.size}")
    magic, *lengths = HEADER.unpack(head)
    if magic != MAGIC:
        raise BadBmodel(f"{path} is no bmodel: expected it to start with {MAGIC:#x}, found {magic:#x}")
    if size < sum(lengths):
        raise BadBmodel(f"{path} is truncated: its header tells of {sum(lengths)} bytes, it has {size}. Build it again")
