"""Reader of rwkv.cpp's ``ggmf`` container, version 101, float32 and float16 tensors.

Layout: six little-endian uint32 (magic, version, n_vocab, n_embed, n_layer, data type), then tensors until the end of
the file: three uint32 (number of dimensions, key length, data type), the dimensions with the fastest-varying first,
the key, the data. The six token-shift vectors are one tensor ``x_rwkvag``; the LoRA matrices are transposed against
the ``.pth`` layout.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reference.shape import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = 0x67676D66
_VERSION = 101
_DTYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
_MAX_AXES = 4
_LORA = tuple(f".att.{q}{n}" for q in "wavg" for n in "12")


def read(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a ``ggmf`` file in BlinkDL's names and orientation, in the file's dtypes.

    Raises:
        CheckpointError: not this container, another version, truncated, or a data type that is not supported.
    """
    data = memoryview(path.read_bytes())
    position = 0

    def take(count: int, what: str) -> memoryview:
        nonlocal position
        if position + count > len(data):
            raise CheckpointError(f"{path}: truncated: {what} needs {count} bytes, {len(data) - position} are left")
        position += count
        return data[position - count : position]

    def integers(count: int, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{count}I", take(4 * count, what))

    magic, version, *_ = integers(6, "the header")
    if (magic, version) != (MAGIC, _VERSION):
        raise CheckpointError(
            f"{path}: magic {magic:#x} version {version}, but should be {MAGIC:#x} version {_VERSION}"
        )
    tensors: dict[str, torch.Tensor] = {}
    while position < len(data):
        n_axes, key_length, dtype = integers(3, "a tensor's header")
        if n_axes > _MAX_AXES or dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: at byte {position - 12}: {n_axes} axes of data type {dtype}, "
                f"but should be at most {_MAX_AXES} axes of type 0 (float32) or 1 (float16)"
            )
        dims = integers(n_axes, "a tensor's dimensions")
        try:
            name = bytes(take(key_length, "a tensor's name")).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: a tensor's name near byte {position} is not UTF-8") from error
        count = int(np.prod(dims, dtype=np.uint64))
        raw = take(count * _DTYPES[dtype].itemsize, name)
        tensors[name] = torch.from_numpy(np.frombuffer(raw, _DTYPES[dtype]).reshape(dims[::-1]).copy())
    return _to_blinkdl(tensors)


def _to_blinkdl(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".att.x_rwkvag"):
            for q, vector in zip("rwkvag", tensor, strict=True):
                renamed[name.replace("x_rwkvag", f"x_{q}")] = vector
        elif name.endswith(_LORA):
            renamed[name] = tensor.T
        else:
            renamed[name] = tensor
    return renamed
