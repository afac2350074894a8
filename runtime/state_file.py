"""A recurrent state in a file, number for number as the device holds it.

The file is in the safetensors format, so that other programs can read it: 8 bytes with the length of the header,
little-endian; the header, a JSON object; the numbers. The header has for each tensor its dtype, its shape, and where
its bytes begin and end behind the header. The tensors are ``state.0``, ``state.1``, ... in the order of the nets'
inputs, of the type F32, F16 or BF16 that the nets take; ``__metadata__`` holds ``{"content": "rwkv-state"}``.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.faults import BadStateFile
from runtime.nets import from_floats, to_floats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.nets import Floats, State

_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 1 << 20
_ALIGNMENT = 8
_METADATA = "__metadata__"
_CONTENT = {"content": "rwkv-state"}


def write(path: Path, arrays: Sequence[Floats], states: Sequence[State]) -> None:
    """Write *arrays*, of the shapes of *states* and rounded to their types. The file appears whole or not at all.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    header: dict[str, Any] = {_METADATA: _CONTENT, **_expected(states)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    target = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_LENGTH.pack(len(text)) + text)
            for array, state in zip(arrays, states, strict=True):
                file.write(from_floats(array, state.dtype))
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def read(path: Path, states: Sequence[State]) -> list[Floats]:
    """Read what `write` wrote for the same *states*: float32 arrays of their shapes.

    Raises:
        BadStateFile: the file cannot be read, is no saved state, is truncated, or is of another model. No more of it
            is read than such a state takes.
    """
    expected = _expected(states)
    total = sum(state.size_bytes for state in states)
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_LENGTH.size)
            length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else _MAX_HEADER + 1
            header = _header(path, file.read(length) if length <= _MAX_HEADER else b"")
            if header != expected:
                raise BadStateFile(f"{path} is the state of another model: {_first_difference(expected, header)}")
            if size != _LENGTH.size + length + total:
                raise BadStateFile(
                    f"{path} is damaged: expected {_LENGTH.size + length + total} bytes, it has {size}. Save it again"
                )
            return [to_floats(file.read(state.size_bytes), state.dtype).reshape(state.shape) for state in states]
    except OSError as error:
        raise BadStateFile(f"{path} cannot be read: {error.strerror}") from error


def _expected(states: Sequence[State]) -> dict[str, Any]:
    """Each tensor's entry in the header."""
    entries = {}
    end = 0
    for i, state in enumerate(states):
        begin, end = end, end + state.size_bytes
        entries[f"state.{i}"] = {
            "dtype": state.dtype.name,
            "shape": list(state.shape),
            "data_offsets": [begin, end],
        }
    return entries


def _header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.pop(_METADATA, None) != _CONTENT:
        raise BadStateFile(f"{path} is no saved state: expected a header as Session.save writes it")
    return header


def _first_difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    for name, entry in expected.items():
        if name not in found:
            return f"expected {len(expected)} tensors, found no {name}"
        if found[name] != entry:
            return f"expected {name} to be {entry}, found {found[name]}"
    return f"expected {len(expected)} tensors, found {len(found)}"
