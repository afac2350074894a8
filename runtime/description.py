"""The nets that a bmodel file says it holds, read without any library or device. Runs on Python 3.8.

The description in the file is a FlatBuffer: a table begins with the distance back to its list of offsets, one for each
field, 0 for a field that is absent. Only the fields that tell names, types and shapes are read here; the numbers of
these fields are part of the format, which only ever adds to them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, TypeVar

from runtime.bmodel import read_description
from runtime.faults import BadBmodel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_Told = TypeVar("_Told")

_NETS = 4  # of a Model
_NET_NAME, _NET_STAGES, _NET_ADDR_MODE = 0, 3, 5
_STAGE_INPUTS, _STAGE_OUTPUTS, _STAGE_IS_DYNAMIC, _STAGE_COMMAND_GROUPS = 0, 1, 5, 8
_TENSOR_NAME, _TENSOR_TYPE, _TENSOR_BYTES, _TENSOR_SHAPES = 0, 1, 4, 5
_SHAPE_DIMS = 0

MESSAGE_LIMIT = 4064
"""Bytes that the firmware's message has to stay below.

A longer one takes a buffer on the device, which the runtime frees as soon as it has launched (same file).
"""


def describe(path: Path) -> list[dict[str, Any]]:
    """Each net as the worker describes it once it is loaded: name, stages, inputs and outputs.

    Raises:
        BadBmodel: *path* is no bmodel, is truncated, or its description is damaged.
    """
    return _read(path, _net)


def launch_messages(path: Path) -> dict[str, int]:
    """Bytes of the message by which the runtime launches each net: see :func:`launch_message_bytes`.

    Raises:
        BadBmodel: *path* is no bmodel, is truncated, or its description is damaged.
    """
    return dict(_read(path, _launch))


def launch_message_bytes(tensors: int, groups: int = 1) -> int:
    """Bytes of a launch's message: a head, a descriptor for each input and output, one for each group of commands.

    As the runtime fills it (libsophon, ``tpu-runtime/src/bmdnn_func_1684x.cpp``, ``fill_api_info``).
    """
    return 28 + 20 * tensors + 16 * groups


def _read(path: Path, tell: Callable[[_Table], _Told]) -> list[_Told]:
    data = read_description(path)
    try:
        root = _Table(data, *struct.unpack_from("<I", data, 0))
        return [tell(net) for net in root.tables(_NETS)]
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise BadBmodel(f"{path} is damaged: its description does not hold together. Build it again") from error


def _launch(net: _Table) -> tuple[str, int]:
    stage = list(net.tables(_NET_STAGES))[0]  # noqa: RUF015 - IndexError of a damaged file, where next() ends a generator
    inputs, outputs, groups = (
        sum(1 for _ in stage.tables(field)) for field in (_STAGE_INPUTS, _STAGE_OUTPUTS, _STAGE_COMMAND_GROUPS)
    )
    return net.text(_NET_NAME), launch_message_bytes(inputs + outputs, groups)


def _net(net: _Table) -> dict[str, Any]:
    stages = list(net.tables(_NET_STAGES))
    return {
        "name": net.text(_NET_NAME),
        "is_dynamic": bool(stages[0].number(_STAGE_IS_DYNAMIC, "<i")),
        "stages": len(stages),
        "addr_mode": net.number(_NET_ADDR_MODE, "<i"),
        "inputs": [_port(tensor) for tensor in stages[0].tables(_STAGE_INPUTS)],
        "outputs": [_port(tensor) for tensor in stages[0].tables(_STAGE_OUTPUTS)],
    }


def _port(tensor: _Table) -> dict[str, Any]:
    shapes = list(tensor.tables(_TENSOR_SHAPES))
    return {
        "name": tensor.text(_TENSOR_NAME),
        "dtype": tensor.number(_TENSOR_TYPE, "<I"),
        "shape": shapes[0].numbers(_SHAPE_DIMS, "<Q"),
        "bytes": tensor.number(_TENSOR_BYTES, "<Q"),
    }


class _Table:
    """A table at *position* of *data*."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position
        (back,) = struct.unpack_from("<i", data, position)
        self._offsets = position - back
        (self._length,) = struct.unpack_from("<H", data, self._offsets)
        if self._offsets < 0 or self._length < 4:
            raise struct.error("no table of offsets")

    def _field(self, number: int) -> int | None:
        """Where the field's value stands; None where it is absent."""
        place = 4 + 2 * number
        if place + 2 > self._length:
            return None
        (offset,) = struct.unpack_from("<H", self._data, self._offsets + place)
        return self._position + offset if offset else None

    def _followed(self, place: int) -> int:
        (distance,) = struct.unpack_from("<I", self._data, place)
        if not distance:
            raise struct.error("an offset that leads nowhere")
        return int(place + distance)

    def number(self, field: int, form: str) -> int:
        place = self._field(field)
        return 0 if place is None else int(struct.unpack_from(form, self._data, place)[0])

    def text(self, field: int) -> str:
        place = self._field(field)
        if place is None:
            return ""
        start = self._followed(place)
        (count,) = struct.unpack_from("<I", self._data, start)
        (text,) = struct.unpack_from(f"<{count}s", self._data, start + 4)
        return str(text.decode())

    def numbers(self, field: int, form: str) -> list[int]:
        size = struct.calcsize(form)
        return [int(struct.unpack_from(form, self._data, place)[0]) for place in self._elements(field, size)]

    def tables(self, field: int) -> Iterator[_Table]:
        for place in self._elements(field, 4):
            yield _Table(self._data, self._followed(place))

    def _elements(self, field: int, size: int) -> range:
        """Where the elements of a list stand."""
        place = self._field(field)
        if place is None:
            return range(0)
        start = self._followed(place)
        (count,) = struct.unpack_from("<I", self._data, start)
        if start + 4 + count * size > len(self._data):
            raise struct.error("a list that is longer than the file")
        return range(start + 4, start + 4 + count * size, size)
