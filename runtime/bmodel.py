"""The header of a bmodel file, and where the file says it comes from. Runs on Python 3.8.

After the header comes a description in the FlatBuffers format. Of its root table only the first four fields are read
here, all of them texts: type, version of the compiler, time of the compilation, chip.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from runtime.faults import BadBmodel

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = 0xFF55AAEE
HEADER = struct.Struct("<IIIQ44x")  # magic; lengths in bytes of header, description and binary

_VERSION_FIELD, _CHIP_FIELD = 1, 3


class Origin(NamedTuple):
    """What a bmodel says of itself."""

    compiler: str
    """Format and release, such as 2.2+v1.30.2-20260831."""
    chip: str


def check_is_bmodel(path: Path) -> None:
    """See that *path* begins like a bmodel and is as long as it says.

    Raises:
        BadBmodel: it is not; the message says how.
    """
    _read(path, description=False)


def read_origin(path: Path) -> Origin:
    """Read which compiler made *path*, and for which chip.

    Raises:
        BadBmodel: it is no bmodel, is truncated, or its description is damaged.
    """
    description = read_description(path)
    try:
        return Origin(_text(description, _VERSION_FIELD), _text(description, _CHIP_FIELD))
    except (struct.error, UnicodeDecodeError) as error:
        raise BadBmodel(f"{path} is damaged: its description does not hold together. Build it again") from error


def read_description(path: Path) -> bytes:
    """The description of *path*, a FlatBuffer.

    Raises:
        BadBmodel: it is no bmodel, or is truncated.
    """
    return _read(path, description=True)


def _read(path: Path, *, description: bool) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(HEADER.size)
            size = path.stat().st_size
            if len(head) < HEADER.size:
                raise BadBmodel(f"{path} is no bmodel: it has {size} bytes, the header of one alone has {HEADER.size}")
            magic, *lengths = HEADER.unpack(head)
            if magic != MAGIC:
                raise BadBmodel(f"{path} is no bmodel: expected it to start with {MAGIC:#x}, found {magic:#x}")
            if size < sum(lengths):
                raise BadBmodel(
                    f"{path} is truncated: its header tells of {sum(lengths)} bytes, it has {size}. Build it again"
                )
            file.seek(lengths[0])
            return file.read(lengths[1]) if description else b""
    except OSError as error:
        raise BadBmodel(f"{path} cannot be read: {error.strerror}") from error


def _text(description: bytes, field: int) -> str:
    """Follow the offsets to a field of the root table that is a string; an absent field is empty."""
    (table,) = struct.unpack_from("<I", description, 0)
    (back,) = struct.unpack_from("<i", description, table)
    offsets = table - back
    (length,) = struct.unpack_from("<H", description, max(offsets, 0))
    position = 4 + 2 * field
    if offsets < 0 or length < 4:
        raise struct.error("no table of offsets")
    if position + 2 > length:
        return ""
    (offset,) = struct.unpack_from("<H", description, offsets + position)
    if offset == 0:
        return ""
    (distance,) = struct.unpack_from("<I", description, table + offset)
    start = table + offset + distance
    (count,) = struct.unpack_from("<I", description, start)
    (text,) = struct.unpack_from(f"<{count}s", description, start + 4)
    return str(text.rstrip(b"\0").decode())
