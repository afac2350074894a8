"""The safetensors container with BlinkDL's names: a JSON header, then the tensors' bytes.

Layout: eight bytes with the header's length (little-endian), the header ``{name: {dtype, shape, data_offsets}}``, the
data without gaps. Files made for web-rwkv store the low-rank pairs transposed; they are turned round.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from reference.formats.blinkdl import flat_vectors, is_lora, is_vector
from reference.formats.mapped import LONGEST_HEADER, MappedFile, shown
from reference.shape import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by BlinkDL's names, in canonical shapes and the file's dtypes.

    Raises:
        CheckpointError: damaged, truncated, hostile, or holding something else than floating-point tensors.
    """
    tensors = flat_vectors(read_tensors(path))
    return {name: tensor.T if _is_turned(name, tensor, tensors) else tensor for name, tensor in tensors.items()}


def _is_turned(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> bool:
    """Whether half of a low-rank pair lies transposed; where rank and width are equal, nothing tells."""
    width = tensors["ln_out.weight"].shape[0] if "ln_out.weight" in tensors else 0
    if not is_lora(name) or tensor.dim() != 2:
        return False
    return tensor.shape[1 if name.endswith("1") else 0] == width != tensor.shape[0 if name.endswith("1") else 1]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Like :func:`read`, with names and shapes as they are stored."""
    file = MappedFile(path)
    (length,) = struct.unpack("<Q", file.take(0, 8, "the header's length"))
    if length > LONGEST_HEADER:
        raise CheckpointError(f"{path}: a header of {length} bytes, but should be at most {LONGEST_HEADER}")
    header = parse_json(bytes(file.take(8, length, "the header")), path, "its header")
    header.pop("__metadata__", None)
    if not header:
        raise CheckpointError(f"{path}: holds no tensors")
    tensors = {}
    spans = []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(name, entry, file)
        tensors[name] = tensor = file.tensor(name, dtype, shape, 8 + length + begin)
        if end - begin != tensor.nbytes:
            raise CheckpointError(
                f"{path}: {name} has {end - begin} bytes, but shape {tuple(shape)} of {dtype} needs {tensor.nbytes}"
            )
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise CheckpointError(f"{path}: {name} begins at byte {begin} of the data, but should at {position}")
        position = end
    if 8 + length + position != file.size:
        raise CheckpointError(f"{path}: {file.size} bytes, but its header describes {8 + length + position}")
    return tensors


def _entry(name: str, entry: object, file: MappedFile) -> tuple[torch.dtype, list[int], int, int]:
    """One tensor's dtype, shape, and where its bytes begin and end behind the header."""
    if not isinstance(entry, dict):
        entry = {}
    file.check_shape(name, entry.get("shape"))
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(f"{file.path}: {name} holds {shown(dtype)}, but should hold one of {', '.join(_DTYPES)}")
    offsets = entry.get("data_offsets")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or any(type(offset) is not int for offset in offsets)
        or not 0 <= offsets[0] <= offsets[1] <= file.size
    ):
        raise CheckpointError(f"{file.path}: {name} has no data_offsets [begin, end] within the file")
    return _DTYPES[dtype], entry["shape"], offsets[0], offsets[1]


def parse_json(text: bytes, path: Path, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: it is none, or has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := next((key for key, count in Counter(keys).items() if count > 1), None):
            raise CheckpointError(f"{path}: {what} has {shown(twice)} twice, but should have it once")
        return dict(pairs)

    try:
        parsed = json.loads(text, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {what} is not JSON: {str(error)[:80]}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: {what} is a {type(parsed).__name__}, but should be an object")
    return parsed


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write canonical tensors as a safetensors file by BlinkDL's names, vectors ``[1, 1, C]`` as in ``.pth``."""
    write_tensors(
        {name: tensor.view(1, 1, -1) if is_vector(name) else tensor for name, tensor in tensors.items()}, path
    )


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Like :func:`write`, with names and shapes as they are given."""
    # Wide numbers first keeps each of them on a multiple of its size.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        tensor = tensors[name]
        span = [position, position + tensor.nbytes]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        position = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
