"""One container into another, tensor for tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from reference.atomic import replacing
from reference.checkpoint import Container, all_finite, read
from reference.formats import fla, ggmf, pth, safetensors_file
from reference.formats.blinkdl import UNUSED_IN_BLOCK_0
from reference.shape import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from reference.checkpoint import Stored
    from reference.shape import ModelShape

SUFFIXES = {
    ".pth": Container.PTH,
    ".safetensors": Container.SAFETENSORS,
    ".bin": Container.GGMF,
    ".ggmf": Container.GGMF,
    "": Container.HUGGING_FACE,
}
"""The container that a goal's name asks for; a name without suffix is a folder's."""

_WRITERS: dict[Container, Callable[[Mapping[str, Tensor], Path], None]] = {
    Container.PTH: pth.write,
    Container.SAFETENSORS: safetensors_file.write,
    Container.GGMF: ggmf.write,
    Container.HUGGING_FACE: fla.write,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a conversion made.

    Attributes:
        container: of the goal.
        notices: what is not as in the source, one sentence each; empty where nothing changed.
    """

    container: Container
    notices: tuple[str, ...]


def convert(
    source: Path,
    goal: Path,
    *,
    container: Container | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
    extra: Callable[[Path, ModelShape], None] | None = None,
) -> Converted:
    """Write the checkpoint *source* as *goal*, every tensor exactly as it is.

    The goal is read back and compared before it gets its name; it appears whole or not at all.

    Args:
        source: a checkpoint in any container.
        goal: what to write.
        container: the goal's; None takes it from the goal's suffix.
        dtype: convert every tensor to it; None keeps the dtypes, as far as the goal's container has them.
        force: replace an existing goal.
        extra: called with the new folder of Hugging Face's layout, before it gets its name, and the model's sizes:
            may add files.

    Raises:
        CheckpointError: the source is none; the goal exists, is the source, or has no known suffix; the container or
            the dtype asked for cannot hold a tensor's values.
    """
    container = container or container_for(goal)
    if container not in _WRITERS:
        raise CheckpointError(f"{goal}: container {container.value!r} is no format of files")
    if container is Container.GGMF and dtype is torch.bfloat16:
        raise CheckpointError(f"{goal}: ggmf does not have bfloat16; ask for float32 or float16, or for nothing")
    stored = read(source)
    if goal.resolve() == source.resolve() or goal.resolve() in source.resolve().parents:
        raise CheckpointError(f"{goal}: is where the source lies; choose another name")
    tensors, notices = _prepared(stored, container, dtype)
    with replacing(goal, force=force) as made:
        try:
            _WRITERS[container](tensors, made)
        except RuntimeError as error:  # torch's writer of zip files answers a full disk with it
            raise CheckpointError(f"{goal}: cannot be written: {str(error).splitlines()[0]}") from error
        _compare(tensors, read(made).tensors, goal)
        if extra and container is Container.HUGGING_FACE:
            extra(made, stored.shape)
    return Converted(container=container, notices=notices)


def container_for(goal: Path) -> Container:
    """The container that a goal's suffix asks for.

    Raises:
        CheckpointError: the suffix is not known.
    """
    if goal.suffix not in SUFFIXES:
        known = ", ".join(f"{suffix or 'no suffix'} ({found.value})" for suffix, found in SUFFIXES.items())
        raise CheckpointError(f"{goal}: the suffix {goal.suffix!r} tells no container: {known}; or say which")
    return SUFFIXES[goal.suffix]


def _prepared(
    stored: Stored, container: Container, dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors as the goal will hold them, and what that changes."""
    tensors: dict[str, Tensor] = {}
    changed: dict[tuple[torch.dtype, torch.dtype], int] = {}
    dropped = []
    for name, tensor in stored.tensors.items():
        if container is Container.HUGGING_FACE and name in UNUSED_IN_BLOCK_0:
            dropped.append(name)
            continue
        target = tensor.dtype if dtype is None else dtype
        if container is Container.GGMF:
            if target == torch.float64:
                raise CheckpointError(f"{stored.path}: {name} holds float64, which ggmf does not have; ask for float32")
            target = ggmf.stored_dtype(name, target)
        wanted = _cast(tensor, target, f"{stored.path}: {name}")
        if wanted.dtype != tensor.dtype:
            pair = (tensor.dtype, wanted.dtype)
            changed[pair] = changed.get(pair, 0) + 1
        tensors[name] = wanted
    notices = [f"{count} tensors of {_short(old)} became {_short(new)}" for (old, new), count in changed.items()]
    if dropped:
        notices.append(f"left out {', '.join(dropped)}: no model uses them, and this layout has no place for them")
    return tensors, tuple(notices)


def _cast(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    cast = tensor.to(dtype)
    if cast is not tensor and not all_finite(cast) and bool((torch.isinf(cast) & torch.isfinite(tensor)).any()):
        largest = float(tensor[torch.isfinite(tensor)].abs().max())
        raise CheckpointError(f"{what} holds {largest:.4g}, which {_short(dtype)} cannot hold; ask for another dtype")
    return cast


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compare(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], goal: Path) -> None:
    """Bit for bit, NaN included."""
    if wanted.keys() != found.keys():
        raise CheckpointError(
            f"{goal}: written with other tensors than asked for: {sorted(wanted.keys() ^ found.keys())}"
        )
    for name, tensor in wanted.items():
        if found[name].dtype != tensor.dtype or not torch.equal(_bits(found[name]), _bits(tensor)):
            raise CheckpointError(f"{goal}: {name} was written, but reads back otherwise; is the disk sound?")


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
