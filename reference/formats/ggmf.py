"""rwkv.cpp's ``ggmf`` container, version 101, float32 and float16 tensors.

Layout: six little-endian uint32 (magic, version, n_vocab, n_embed, n_layer, data type), then tensors until the end of
the file: three uint32 (number of dimensions, key length, data type), the dimensions with the fastest-varying first,
the key, the data. The six token-shift vectors are one tensor ``x_rwkvag``; the LoRA matrices are transposed against
the ``.pth`` layout; vectors are float32 always, since rwkv.cpp computes with them as they are.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import torch

from reference.formats.blinkdl import SHIFTS, flat_vectors, is_lora, is_vector
from reference.formats.mapped import MappedFile
from reference.shape import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

MAGIC = 0x67676D66
_VERSION = 101
_DTYPES = {0: torch.float32, 1: torch.float16}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_AXES = 4
_LONGEST_KEY = 200
_MERGED = "x_rwkvag"


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``ggmf`` file by BlinkDL's names, in canonical shapes and the file's dtypes.

    Raises:
        CheckpointError: not this container, another version, damaged, or a data type that is not supported.
    """
    file = MappedFile(path)
    magic, version, n_vocab, n_embd, n_layer, _ = struct.unpack("<6I", file.take(0, 24, "the header"))
    if (magic, version) != (MAGIC, _VERSION):
        raise CheckpointError(
            f"{path}: magic {magic:#x} version {version}, but should be {MAGIC:#x} version {_VERSION}"
        )
    tensors: dict[str, Tensor] = {}
    position = 24
    while position < file.size:
        n_axes, key_length, code = struct.unpack("<3I", file.take(position, 12, "a tensor's header"))
        if not 1 <= n_axes <= _MAX_AXES or code not in _DTYPES or not 1 <= key_length <= _LONGEST_KEY:
            raise CheckpointError(
                f"{path}: at byte {position}: {n_axes} axes of data type {code} with a name of {key_length} bytes, but "
                f"should be 1 to {_MAX_AXES} axes of type 0 (float32) or 1 (float16) and 1 to {_LONGEST_KEY} bytes"
            )
        position += 12
        dims = struct.unpack(f"<{n_axes}I", file.take(position, 4 * n_axes, "a tensor's dimensions"))
        position += 4 * n_axes
        name = bytes(file.take(position, key_length, "a tensor's name")).decode("latin-1")
        position += key_length
        if name in tensors:
            raise CheckpointError(f"{path}: {name!a} occurs twice, but should occur once")
        tensors[name] = tensor = file.tensor(name, _DTYPES[code], dims[::-1], position)
        position += tensor.nbytes
    renamed = flat_vectors(dict(_to_blinkdl(tensors, path)))
    _check_header(renamed, (n_vocab, n_embd, n_layer), path)
    return renamed


def _to_blinkdl(tensors: Mapping[str, Tensor], path: Path) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if name.endswith(".att." + _MERGED):
            if tensor.shape[0] != len(SHIFTS):
                raise CheckpointError(
                    f"{path}: {name} has shape {tuple(tensor.shape)}, but should have {len(SHIFTS)} vectors"
                )
            for q, vector in zip(SHIFTS, tensor, strict=True):
                yield name.replace(_MERGED, f"x_{q}"), vector
        else:
            yield name, tensor.T if is_lora(name) and tensor.dim() == 2 else tensor


def _check_header(tensors: Mapping[str, Tensor], header: tuple[int, int, int], path: Path) -> None:
    emb = tensors.get("emb.weight")
    layers = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    if emb is not None and (found := (*emb.shape, len(layers))) != header:
        raise CheckpointError(f"{path}: its header says vocabulary, width and layers {header}, but its tensors {found}")


def stored_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which this container stores the tensor *name* that is held, or asked for, in *dtype*.

    Float16 matrices, and else float32: exact but for float64.
    """
    is_matrix = is_lora(name) or (name.endswith(".weight") and "ln" not in name)
    return torch.float16 if dtype == torch.float16 and is_matrix else torch.float32


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write canonical tensors as a ``ggmf`` file, in dtypes as :func:`stored_dtype` says."""
    n_vocab, n_embd = tensors["emb.weight"].shape
    n_layer = sum(name.endswith(".ln1.weight") for name in tensors)
    code = _CODES[stored_dtype("emb.weight", tensors["emb.weight"].dtype)]
    with path.open("wb") as file:
        file.write(struct.pack("<6I", MAGIC, _VERSION, n_vocab, n_embd, n_layer, code))
        for name, tensor in tensors.items():
            key, stored = name, tensor.to(stored_dtype(name, tensor.dtype))
            if name.endswith(".att.x_r"):
                key = name.replace("x_r", _MERGED)
                vectors = [tensors[name.removesuffix("r") + q] for q in SHIFTS]
                stored = torch.stack([vector.to(torch.float32) for vector in vectors])[:, None]
            elif ".att.x_" in name:
                continue
            elif is_lora(name):
                stored = stored.T
            elif is_vector(name):
                stored = stored.view(1, 1, -1)
            file.write(struct.pack("<3I", stored.dim(), len(key), _CODES[stored.dtype]))
            file.write(struct.pack(f"<{stored.dim()}I", *reversed(stored.shape)) + key.encode())
            file.write(stored.contiguous().flatten().view(torch.uint8).numpy().data)
