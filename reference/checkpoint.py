"""One reader of checkpoint files: any supported container in, canonical tensors and sizes out."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch

from reference import ggmf
from reference.shape import CheckpointError, ModelShape, shape_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_UNUSED_IN_BLOCK_0 = tuple(f"blocks.0.att.v{n}" for n in "012")


class Container(Enum):
    """How a checkpoint's tensors are stored."""

    PTH = "pth"
    GGMF = "ggmf"
    SYNTHETIC = "synthetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model's tensors in one canonical form.

    Attributes:
        name: what to call it: the file's stem, or the recipe of a synthetic one.
        container: where it came from.
        sha256: of the file's bytes, or of a synthetic checkpoint's recipe.
        shape: sizes, read from the tensors.
        tensors: float32, contiguous, by BlinkDL's names: vectors ``[C]``, matrices ``[out, in]``, LoRA pairs
            ``[C, rank]`` and ``[rank, C]``, ``r_k [H, N]``.
    """

    name: str
    container: Container
    sha256: str
    shape: ModelShape
    tensors: Mapping[str, Tensor]


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; the container is recognised by its first bytes, not by the file's name.

    Raises:
        CheckpointError: the file cannot be read, or is not an RWKV-7 checkpoint.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    is_ggmf = len(head) == 4 and struct.unpack("<I", head)[0] == ggmf.MAGIC
    container = Container.GGMF if is_ggmf else Container.PTH
    raw = ggmf.read(path) if is_ggmf else _read_pth(path)
    tensors = _canonical(raw, str(path))
    return Checkpoint(
        name=path.stem, container=container, sha256=sha256, shape=shape_of(tensors, str(path)), tensors=tensors
    )


def _read_pth(path: Path) -> dict[str, Tensor]:
    """A ``.pth`` file's tensors; ``weights_only`` keeps a hostile pickle from running code."""
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: neither a ggmf file nor a .pth file that holds tensors only; torch says: {reason}"
        ) from error
    if not isinstance(raw, dict) or not all(isinstance(value, torch.Tensor) for value in raw.values()):
        raise CheckpointError(f"{path}: holds a {type(raw).__name__}, but should be a dictionary of tensors")
    return raw


def _canonical(raw: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    r_k = raw.get("blocks.0.att.r_k")
    if r_k is None:
        raise CheckpointError(f"{source}: no tensor 'blocks.0.att.r_k'; every RWKV-7 (x070) checkpoint has one")
    tensors: dict[str, Tensor] = {}
    for name, tensor in raw.items():
        if name in _UNUSED_IN_BLOCK_0:
            continue  # some releases carry them; block 0 has no value residual
        if not tensor.is_floating_point():
            raise CheckpointError(f"{source}: {name} holds {tensor.dtype}, but should hold floating-point numbers")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{source}: {name} holds NaN or Inf")
        # Vectors are stored [1, 1, C] or [C, 1, 1]; matrices and r_k keep their two axes even where one is 1.
        stored_as_vector = tensor.dim() == 3 or (tensor.dim() == 2 and ".att.x_" in name)
        tensors[name] = (tensor.flatten() if stored_as_vector else tensor).to(torch.float32).contiguous()
    return tensors
