"""One reader of checkpoints: any supported container in, canonical tensors and sizes out."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch

from reference.formats import fla, ggmf, pth, safetensors_file
from reference.formats.blinkdl import UNUSED_IN_BLOCK_0
from reference.formats.mapped import MappedFile
from reference.shape import CheckpointError, ModelShape, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor


class Container(Enum):
    """How a checkpoint's tensors are stored."""

    PTH = "pth"
    SAFETENSORS = "safetensors"
    GGMF = "ggmf"
    HUGGING_FACE = "hugging-face"
    SYNTHETIC = "synthetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A checkpoint as it lies on the disk.

    Attributes:
        path: the file, or the folder of Hugging Face's layout.
        container: recognised by content.
        sha256: of the file's bytes, or of the names and hashes of the folder's files.
        file_bytes: of all files together.
        shape: sizes, read from the tensors.
        tensors: in their stored dtypes, by BlinkDL's names and in canonical shapes (see :class:`Checkpoint`); they may
            share memory with the file. Block 0's unused v0, v1, v2 are here where a release carries them.
    """

    path: Path
    container: Container
    sha256: str
    file_bytes: int
    shape: ModelShape
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model's tensors in one canonical form.

    Attributes:
        name: what to call it: the file's stem, the folder's name, or the recipe of a synthetic one.
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


_READERS: dict[Container, Callable[[Path], dict[str, Tensor]]] = {
    Container.PTH: pth.read,
    Container.SAFETENSORS: safetensors_file.read,
    Container.GGMF: ggmf.read,
    Container.HUGGING_FACE: fla.read,
}


def load(path: Path) -> Checkpoint:
    """Read a checkpoint to compute with it; the container is recognised by content, not by the file's name.

    Raises:
        CheckpointError: it cannot be read, or is not an RWKV-7 checkpoint of finite numbers.
    """
    stored = read(path)
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.tensors.items():
        if name in UNUSED_IN_BLOCK_0:
            continue
        if not all_finite(tensor):
            raise CheckpointError(f"{path}: {name} holds NaN or Inf, but should hold finite numbers")
        # A copy even of float32: the file may change while the model is in use.
        tensors[name] = tensor.to(torch.float32, copy=True).contiguous()
    return Checkpoint(
        name=path.resolve().name if stored.container is Container.HUGGING_FACE else path.stem,
        container=stored.container,
        sha256=stored.sha256,
        shape=stored.shape,
        tensors=tensors,
    )


def read(path: Path) -> Stored:
    """Read a checkpoint as it is stored; numbers are not looked at, sizes and names are checked.

    Raises:
        CheckpointError: it cannot be read, or is not an RWKV-7 checkpoint.
    """
    container, files = _recognise(path)
    tensors = _READERS[container](path)
    if other := _other_architecture(tensors):
        raise CheckpointError(f"{path}: {other}; RWKV-7 (x070) is expected")
    used = {name: tensor for name, tensor in tensors.items() if name not in UNUSED_IN_BLOCK_0}
    shape = shape_of(used, str(path))
    _check_unused(tensors, shape, path)
    # Hashed last: what is refused is refused quickly.
    digests = [hashlib.sha256(file.take(0, file.size, "the file")).hexdigest() for file in files]
    sha256 = digests[0]
    if container is Container.HUGGING_FACE:
        listing = "".join(f"{file.path.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
        sha256 = hashlib.sha256(listing.encode()).hexdigest()
    return Stored(
        path=path,
        container=container,
        sha256=sha256,
        file_bytes=sum(file.size for file in files),
        shape=shape,
        tensors={name: tensors[name] for name in [*shape.tensors(), *sorted(UNUSED_IN_BLOCK_0 & set(tensors))]},
    )


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor is free of NaN and Inf; its extremes tell, since NaN is passed on, without a mask as large."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def _recognise(path: Path) -> tuple[Container, list[MappedFile]]:
    """The container of a file or folder by its content, and its files."""
    try:
        if path.is_dir():
            if not (path / fla.CONFIG).exists():
                raise CheckpointError(f"{path}: is a folder without {fla.CONFIG}; Hugging Face's layout has one")
            return Container.HUGGING_FACE, [MappedFile(part) for part in fla.files(path)]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    file = MappedFile(path)
    head = bytes(file.take(0, min(file.size, 16), "the file"))
    if head.startswith(struct.pack("<I", ggmf.MAGIC)):
        return Container.GGMF, [file]
    if head.startswith((pth.ZIP_MAGIC, pth.LEGACY_MAGIC)):
        return Container.PTH, [file]
    if head[8:9] == b"{":
        return Container.SAFETENSORS, [file]
    raise CheckpointError(
        f"{path}: begins as no checkpoint does; a .pth file, a safetensors file, a ggmf file, or a folder in "
        "Hugging Face's layout is expected"
    )


_MARKS = (
    (".att.time_state", "a tuned initial state, not a checkpoint: give it as state file, beside its checkpoint"),
    (".att.time_maa_", "this is RWKV-6 ('time_maa')"),
    (".att.time_faaaa", "this is RWKV-5 ('time_faaaa')"),
    (".att.time_first", "this is RWKV-4 or the first RWKV-5 ('time_first')"),
    (".att.time_decay", "this is an RWKV before 7 ('time_decay')"),
    (".ffn.s_emb.", "this is RWKV-7 with deep embeddings ('ffn.s_emb'), which has more tensors"),
    (".attn.g_norm.", "these are flash-linear-attention's names: give the folder with config.json instead of the file"),
    (".self_attn.", "this is a transformer of the Llama kind ('self_attn')"),
    ("transformer.h.", "this is a transformer of the GPT kind ('transformer.h')"),
    (".attn.c_attn.", "this is a transformer of the GPT kind ('attn.c_attn')"),
)
"""Parts of names that tell what else a file is, the surest first."""


def _other_architecture(names: Iterable[str]) -> str | None:
    names = list(names)
    if "blocks.0.att.r_k" in names and not any(".ffn.s_emb." in name for name in names):
        return None  # RWKV-7, if a damaged one: then the tensors are named
    return next((verdict for mark, verdict in _MARKS if any(mark in name for name in names)), None)


def _check_unused(tensors: Mapping[str, Tensor], shape: ModelShape, path: Path) -> None:
    """Block 0's unused tensors may have any rank, but must be a vector and a pair: other containers turn them round."""
    C = shape.n_embd
    for name in sorted(UNUSED_IN_BLOCK_0 & set(tensors)):
        found = tuple(tensors[name].shape)
        fits = {"0": found == (C,), "1": found[0] == C and len(found) == 2, "2": found[-1] == C and len(found) == 2}
        if not fits[name[-1]]:
            wanted = {"0": f"({C},)", "1": f"({C}, rank)", "2": f"(rank, {C})"}[name[-1]]
            raise CheckpointError(f"{path}: {name} has shape {found}, but should have {wanted}")
