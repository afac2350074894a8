"""Messages between a process and its worker: a JSON header and raw bytes. Runs on Python 3.8.

One message is
    4 bytes  MAGIC
    8 bytes  length of the header, little-endian
    header   JSON object; its key "payloads" lists the lengths of the payloads
    payloads the bytes themselves, one after the other; none where the header says "in_window": true, because
             they lie in the memory that both sides see (runtime.window)

While a request is being carried out, messages that hold nothing but "alive": true may come before the reply.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.window import Window

MAGIC = b"RTW2"
_PREFIX = struct.Struct("<4sQ")
MAX_HEADER = 1 << 24
_WORTH_A_WINDOW_BYTES = 1 << 12


class FramingError(Exception):
    """The bytes are no message: something else wrote to the pipe, or the other side is another version."""


class Message(NamedTuple):
    """One request or reply: JSON fields, and payloads of raw bytes."""

    fields: dict[str, Any]
    payloads: Sequence[bytes | memoryview]


def encode(fields: dict[str, Any], payloads: Sequence[bytes | memoryview] = (), window: Window | None = None) -> bytes:
    """Pack *fields* (JSON values; the keys "payloads" and "in_window" are taken) and *payloads* into one message.

    With a *window*, the payloads are put there if they are worth it and fit.
    """
    sizes = [len(payload) for payload in payloads]
    header = {**fields, "payloads": sizes}
    if window is not None and sum(sizes) >= _WORTH_A_WINDOW_BYTES and window.put(payloads):
        header["in_window"] = True
        payloads = ()
    text = json.dumps(header).encode()
    return b"".join([_PREFIX.pack(MAGIC, len(text)), text, *payloads])


def receive(read: Callable[[int], bytes], window: Window | None = None) -> Message:
    """Take one message from *read*, which returns exactly as many bytes as it is asked for.

    Payloads in the *window* are given as they lie there: they are gone with the next message.

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
        in_window = fields.pop("in_window", False)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise FramingError(f"expected a JSON object with payload lengths: {error!r}") from error
    if not in_window:
        return Message(fields, [read(size) for size in sizes])
    places = window.places(sizes) if window is not None else None
    if places is None:
        raise FramingError(f"expected payloads behind the header, found it says they lie in a window: {sizes}")
    return Message(fields, places)
