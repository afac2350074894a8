"""Messages between a process and its worker: a JSON header and raw bytes. Runs on Python 3.8.

One message is
    4 bytes  MAGIC
    8 bytes  length of the header, little-endian
    header   JSON object; its key "payloads" lists the lengths of the payloads
    payloads the bytes themselves, one after the other
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAGIC = b"RTW1"
_PREFIX = struct.Struct("<4sQ")
MAX_HEADER = 1 << 24


class FramingError(Exception):
    """The bytes are no message: something else wrote to the pipe, or the other side is another version."""


class Message(NamedTuple):
    """One request or reply: JSON fields, and payloads of raw bytes."""

    fields: dict[str, Any]
    payloads: list[bytes]


def encode(fields: dict[str, Any], payloads: Sequence[bytes] = ()) -> bytes:
    """Pack *fields* (JSON values; the key "payloads" is taken) and *payloads* into one message."""
    header = json.dumps({**fields, "payloads": [len(payload) for payload in payloads]}).encode()
    return b"".join([_PREFIX.pack(MAGIC, len(header)), header, *payloads])


def receive(read: Callable[[int], bytes]) -> Message:
    """Take one message from *read*, which returns exactly as many bytes as it is asked for.

    Raises:
        FramingError: what arrives is no message.
        Whatever *read* raises when the bytes end.
    """
    magic, length = _PREFIX.unpack(read(_PREFIX.size))
    if magic != MAGIC or length > MAX_HEADER:
        raise FramingError(f"expected a message that starts with {MAGIC!r}, found {magic!r} and length {length}")
    try:
        fields = json.loads(read(length))
        sizes = fields.pop("payloads")
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise FramingError(f"expected payload lengths, found {sizes!r}")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise FramingError(f"expected a JSON object with payload lengths: {error!r}") from error
    return Message(fields, [read(size) for size in sizes])
