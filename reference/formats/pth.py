"""Torch's own file format as BlinkDL's releases use it: a dictionary of plain tensors, vectors stored ``[1, 1, C]``.

Two layouts: a zip archive (since torch 1.6) and, before, a sequence of pickles followed by the data. Neither is given
to torch, whose reader allocates what a file asks for: the pickle is interpreted by :mod:`reference.formats.pickled`,
and tensors are views of the mapped file.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from reference.formats import pickled
from reference.formats.blinkdl import flat_vectors, is_vector
from reference.formats.mapped import LONGEST_HEADER, MappedFile, shown
from reference.shape import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."

_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.HalfStorage": torch.float16,
}
_ZIP_LOCAL_HEADER = 30
_LEGACY_PROTOCOL = 1001
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class _Storage:
    """A run of numbers in the file: where it begins, and how many bytes it has."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """A tensor as the pickle describes it; offset and strides in elements of its storage."""

    key: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.pth`` file by BlinkDL's names, in canonical shapes and the file's dtypes; no code in it runs.

    Raises:
        CheckpointError: damaged, truncated, hostile, or holding something else than floating-point tensors.
    """
    return flat_vectors(read_tensors(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Like :func:`read`, with names and shapes as they are stored."""
    file = MappedFile(path)
    if bytes(file.take(0, min(4, file.size), "the file")) == ZIP_MAGIC:
        described, storages = _open_zip(file)
    else:
        described, storages = _open_legacy(file)
    plans = _plans(described, file)
    return {name: _tensor(name, plan, storages, file) for name, plan in plans.items()}


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write canonical tensors as a ``.pth`` file, as BlinkDL's releases are: vectors ``[1, 1, C]``."""
    with path.open("wb") as file:
        torch.save(
            {
                name: _alone(tensor).view(1, 1, -1) if is_vector(name) else _alone(tensor)
                for name, tensor in tensors.items()
            },
            file,
        )


def _alone(tensor: Tensor) -> Tensor:
    """The tensor with a storage of its own: torch writes the whole of the storage that a view belongs to."""
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _open_zip(file: MappedFile) -> tuple[object, dict[str, _Storage]]:
    """What the archive's pickle describes, and the archive's storages by their keys."""
    path = file.path
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    # zipfile answers damage with many kinds of errors.
    except (OSError, ValueError, EOFError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: a truncated or damaged zip archive ({error}); copy the file again") from error
    if sum(entry.file_size for entry in entries) > file.size:
        raise CheckpointError(f"{path}: the zip archive's entries, unpacked, are larger than its {file.size} bytes")
    records: dict[str, _Storage] = {}
    for entry in entries:
        name = entry.filename
        label = shown(name)
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise CheckpointError(f"{path}: its entry {label} points out of the archive; torch writes no such entry")
        if name in records:
            raise CheckpointError(f"{path}: its entry {label} occurs twice, but should occur once")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
            raise CheckpointError(
                f"{path}: its entry {label} is compressed or encrypted, {entry.compress_size} bytes for "
                f"{entry.file_size}; torch stores entries as they are"
            )
        records[name] = _locate(entry, file)
    programs = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise CheckpointError(f"{path}: a zip archive with {len(programs)} entries NAME/data.pkl, but torch writes one")
    root = programs[0].removesuffix("data.pkl")
    order = records.get(root + "byteorder")
    if order and bytes(file.take(order.start, min(order.size, 16), "byteorder")) != b"little":
        raise CheckpointError(f"{path}: its numbers are big-endian, but should be little-endian")
    program = records[programs[0]]
    if program.size > LONGEST_HEADER:
        raise CheckpointError(f"{path}: a pickle of {program.size} bytes, but should be at most {LONGEST_HEADER}")
    described, _ = pickled.read(bytes(file.take(program.start, program.size, "data.pkl")), path)
    data = root + "data/"
    storages = {name.removeprefix(data): record for name, record in records.items() if name.startswith(data)}
    return described, storages


def _locate(entry: zipfile.ZipInfo, file: MappedFile) -> _Storage:
    """Where an entry's bytes lie; they must be what the archive's checksum says."""
    what = f"the zip entry {shown(entry.filename)}"
    header = file.take(entry.header_offset, _ZIP_LOCAL_HEADER, what)
    if header[:4] != ZIP_MAGIC:
        raise CheckpointError(f"{file.path}: {what} does not begin where the archive's directory says")
    name_length, extra_length = struct.unpack("<2H", header[26:30])
    start = entry.header_offset + _ZIP_LOCAL_HEADER + name_length + extra_length
    data = file.take(start, entry.file_size, what)
    # Torch can be told to leave checksums out; they are 0 then.
    if entry.CRC and zlib.crc32(data) != entry.CRC:
        raise CheckpointError(f"{file.path}: {what} is damaged: its checksum differs; copy the file again")
    return _Storage(start, entry.file_size)


def _open_legacy(file: MappedFile) -> tuple[object, dict[str, _Storage]]:
    """Like :func:`_open_zip`, of the layout before: magic, protocol, system, tensors, keys, then the data."""
    path = file.path
    head = bytes(file.take(0, min(file.size, LONGEST_HEADER), "the pickles"))
    if not head.startswith(LEGACY_MAGIC):
        raise CheckpointError(f"{path}: does not begin as a .pth file does")
    parts: list[Any] = []
    position = 0
    for _ in range(5):
        value, length = pickled.read(head[position:], path)
        parts.append(value)
        position += length
    _, protocol, system, described, keys = parts
    little = isinstance(system, dict) and system.get("little_endian") is True
    if protocol != _LEGACY_PROTOCOL or not little or not isinstance(keys, list):
        raise CheckpointError(
            f"{path}: not torch's layout {_LEGACY_PROTOCOL} with little-endian numbers and a list of storages"
        )
    sizes = {plan.key: plan.dtype.itemsize for plan in _plans(described, file).values()}
    storages: dict[str, _Storage] = {}
    for key in keys:
        if not isinstance(key, str) or key in storages or key not in sizes:
            raise CheckpointError(f"{path}: its list of storages does not fit its tensors")
        (count,) = struct.unpack("<q", file.take(position, 8, "a storage's length"))
        if count < 0:
            raise CheckpointError(f"{path}: a storage of {count} numbers, but should have at least one")
        file.take(position + 8, count * sizes[key], "a storage")
        storages[key] = _Storage(position + 8, count * sizes[key])
        position += 8 + count * sizes[key]
    return described, storages


def _plans(described: object, file: MappedFile) -> dict[str, _Plan]:
    """The tensors that a pickle describes, checked to be nothing else."""
    path = file.path
    if not isinstance(described, dict):
        raise CheckpointError(f"{path}: what it holds is {_kind(described)}, but should be a dictionary of tensors")
    plans = {}
    for name, value in described.items():
        call = value
        if isinstance(call, pickled.Call) and call.function == pickled.PARAMETER and call.arguments:
            call = call.arguments[0]
        if not isinstance(call, pickled.Call) or call.function != pickled.TENSOR:
            hint = ""
            if isinstance(value, dict):
                hint = f": this wraps a checkpoint; save what is inside alone, torch.save(whole[{shown(name)}], …)"
            raise CheckpointError(f"{path}: {shown(name)} is {_kind(value)}, but should be a tensor{hint}")
        plans[name] = _plan(name, call.arguments, file)
    return plans


def _plan(name: str, arguments: tuple[Any, ...], file: MappedFile) -> _Plan:
    path = file.path
    try:
        outside, offset, shape, stride = arguments[:4]
        kind, storage_type, key, *_ = outside.identity
        view = outside.identity[5:]
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: {shown(name)} is no tensor as torch writes one") from error
    if (
        kind != "storage"
        or not isinstance(storage_type, pickled.Name)
        or not isinstance(key, str)
        or view not in ((), (None,))
    ):
        raise CheckpointError(f"{path}: {shown(name)} is no tensor as torch writes one")
    file.check_shape(name, shape)
    dtype = _DTYPES.get(storage_type.name)
    if dtype is None:
        raise CheckpointError(
            f"{path}: {name} holds {shown(storage_type.name)}, but should hold floating-point numbers: "
            "float64, float32, bfloat16 or float16"
        )
    numbers = (offset, *stride) if isinstance(stride, tuple) and len(stride) == len(shape) else (-1,)
    if any(type(number) is not int or not 0 <= number <= file.size for number in numbers):
        raise CheckpointError(f"{path}: {name} has an offset or strides that lie outside of the file")
    return _Plan(key, dtype, offset, tuple(shape), stride)


def _tensor(name: str, plan: _Plan, storages: Mapping[str, _Storage], file: MappedFile) -> Tensor:
    if plan.key not in storages:
        raise CheckpointError(f"{file.path}: no data for {name}: the file should have its storage {shown(plan.key)}")
    storage = storages[plan.key]
    count = math.prod(plan.shape)
    last = plan.offset + sum((size - 1) * step for size, step in zip(plan.shape, plan.stride, strict=True))
    available = storage.size // plan.dtype.itemsize
    if last >= available:
        raise CheckpointError(
            f"{file.path}: {name} has shape {plan.shape} up to number {last}, but its storage holds {available}"
        )
    if count > last - plan.offset + 1:
        raise CheckpointError(
            f"{file.path}: {name} has shape {plan.shape} with strides {plan.stride}, which repeats numbers; "
            "each should be stored"
        )
    steps = tuple(math.prod(plan.shape[axis + 1 :]) for axis in range(len(plan.shape)))
    first = storage.start + plan.offset * plan.dtype.itemsize
    if all(size == 1 or have == want for size, have, want in zip(plan.shape, plan.stride, steps, strict=True)):
        return file.tensor(name, plan.dtype, plan.shape, first)
    run = file.tensor(name, plan.dtype, (last - plan.offset + 1,), first)
    return run.as_strided(plan.shape, plan.stride).contiguous()


def _kind(value: object) -> str:
    return "one tensor" if isinstance(value, pickled.Call) else f"of type {type(value).__name__}"
