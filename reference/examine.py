"""What is in a checkpoint, and what looks wrong with it though it can be read."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from reference.checkpoint import Container, all_finite, read
from reference.formats.blinkdl import UNUSED_IN_BLOCK_0

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from reference.checkpoint import Stored
    from reference.shape import ModelShape

USUAL_HEAD_SIZE = 64
_LARGEST_FLOAT16 = 65504.0
_EXTREME_DECAY = 16.0  # beyond it, the decay is its limit to the last bit of float32
_LISTED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """The finite values of one kind of tensor, over all layers.

    Attributes:
        kind: the tensors' name without the layer's number: ``blocks.N.att.w0``.
        tensors: how many there are.
        shape: of the first of them.
        dtypes: stored dtypes, as torch calls them.
        minimum: the smallest value.
        maximum: the largest value.
        mean_absolute: mean of the absolute values.
        zeros: share of values that are 0, from 0 to 1.
    """

    kind: str
    tensors: int
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    minimum: float
    maximum: float
    mean_absolute: float
    zeros: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """A checkpoint, examined.

    Attributes:
        path: the file or folder.
        container: how it is stored.
        sha256: see :class:`reference.checkpoint.Stored`.
        file_bytes: of all its files.
        parameters: numbers that a model uses.
        shape: sizes.
        dtypes: how many tensors there are of which stored dtype.
        values: by kind of tensor.
        warnings: what looks wrong, one sentence each.
    """

    path: Path
    container: Container
    sha256: str
    file_bytes: int
    parameters: int
    shape: ModelShape
    dtypes: Mapping[str, int]
    values: tuple[Values, ...]
    warnings: tuple[str, ...]


def examine(path: Path) -> Findings:
    """Read a checkpoint and look at all of its numbers.

    Raises:
        CheckpointError: it cannot be read, or is not an RWKV-7 checkpoint.
    """
    stored = read(path)
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in stored.tensors:
        kinds[re.sub(r"^blocks\.\d+\.", "blocks.N.", name)].append(name)
    measured = {name: _measure(tensor) for name, tensor in stored.tensors.items()}
    return Findings(
        path=path,
        container=stored.container,
        sha256=stored.sha256,
        file_bytes=stored.file_bytes,
        parameters=sum(tensor.numel() for name, tensor in stored.tensors.items() if name not in UNUSED_IN_BLOCK_0),
        shape=stored.shape,
        dtypes=dict(Counter(_dtype(tensor) for tensor in stored.tensors.values())),
        values=tuple(_values(kind, names, stored.tensors, measured) for kind, names in kinds.items()),
        warnings=tuple(_warnings(stored, kinds, measured)),
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """One tensor's finite values, summed up."""

    finite: int
    minimum: float
    maximum: float
    absolute_sum: float
    zeros: int
    total: int
    digest: bytes


def _measure(tensor: Tensor) -> _Measured:
    values = tensor.flatten()
    finite = values if all_finite(values) else values[values.isfinite()]
    exact = finite.to(torch.promote_types(tensor.dtype, torch.float32))
    has_any = exact.numel() > 0
    return _Measured(
        finite=exact.numel(),
        minimum=float(exact.min()) if has_any else float("nan"),
        maximum=float(exact.max()) if has_any else float("nan"),
        absolute_sum=float(exact.abs().sum(dtype=torch.float64)),
        zeros=int((exact == 0).sum()),
        total=values.numel(),
        digest=hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data).digest(),
    )


def _values(kind: str, names: list[str], tensors: Mapping[str, Tensor], measured: Mapping[str, _Measured]) -> Values:
    some = [measured[name] for name in names if measured[name].finite]
    count = sum(part.finite for part in some)
    return Values(
        kind=kind,
        tensors=len(names),
        shape=tuple(tensors[names[0]].shape),
        dtypes=tuple(sorted({_dtype(tensors[name]) for name in names})),
        minimum=min((part.minimum for part in some), default=float("nan")),
        maximum=max((part.maximum for part in some), default=float("nan")),
        mean_absolute=sum(part.absolute_sum for part in some) / count if count else float("nan"),
        zeros=sum(part.zeros for part in some) / count if count else float("nan"),
    )


def _warnings(stored: Stored, kinds: Mapping[str, list[str]], measured: Mapping[str, _Measured]) -> Iterator[str]:
    yield from _doubts_about_sizes(stored)
    names = [name for name in measured if name not in UNUSED_IN_BLOCK_0]

    def named(condition: str, found: list[str]) -> Iterator[str]:
        if found:
            yield f"{condition}: {_listed(found)}"

    yield from named(
        "NaN or Inf, with which no model computes", [n for n in names if measured[n].finite < measured[n].total]
    )
    large = [n for n in names if max(-measured[n].minimum, measured[n].maximum) > _LARGEST_FLOAT16]
    yield from named(f"values beyond float16's largest, {_LARGEST_FLOAT16:g}", large)
    weights = [n for n in names if not n.endswith(".bias") and measured[n].total > 1]
    zero = [n for n in weights if measured[n].zeros == measured[n].total]
    yield from named("all zero, as before training", zero)
    constant = [n for n in weights if measured[n].minimum == measured[n].maximum and n not in zero]
    yield from named("one value throughout, as before training", constant)
    sparse = [n for n in weights if 2 * measured[n].zeros > measured[n].total and n not in zero]
    yield from named("more than half zeros", sparse)
    decays = [n for n in names if n.endswith(".att.w0")]
    keeps = [n for n in decays if measured[n].minimum < -_EXTREME_DECAY]
    yield from named(f"decays below {-_EXTREME_DECAY:g}: channels that never forget", keeps)
    loses = [n for n in decays if measured[n].maximum > _EXTREME_DECAY]
    yield from named(f"decays above {_EXTREME_DECAY:g}: channels stuck at the fastest decay", loses)
    norms = [n for n in names if re.search(r"(^|\.)ln\w*\.weight$", n)]
    yield from named("negative layer norm weights", [n for n in norms if measured[n].minimum < 0])
    for members in kinds.values():
        by_digest: dict[bytes, list[str]] = defaultdict(list)
        for name in members:
            if measured[name].minimum != measured[name].maximum:
                by_digest[measured[name].digest].append(name)
        for equal in by_digest.values():
            if len(equal) > 1:
                yield f"the same numbers in several layers: {_listed(equal)}"


def _doubts_about_sizes(stored: Stored) -> Iterator[str]:
    """What is unusual before any number is looked at."""
    N = stored.shape.head_size
    if N != USUAL_HEAD_SIZE:
        yield f"head size {N}: releases have {USUAL_HEAD_SIZE}"
        if stored.container is Container.HUGGING_FACE:
            yield (
                f"head size {N} in this layout: flash-linear-attention normalises heads with eps {N}e-5, "
                f"the releases' code and this project with {USUAL_HEAD_SIZE}e-5, so results differ"
            )
    dtypes = {_dtype(tensor) for tensor in stored.tensors.values()}
    if len(dtypes) > 1:
        yield f"mixed dtypes: {', '.join(sorted(dtypes))}"
    if unused := sorted(UNUSED_IN_BLOCK_0 & set(stored.tensors)):
        yield f"tensors that no model uses: {', '.join(unused)}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
