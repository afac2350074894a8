"""A model's tensors one at a time, made or read when a compile asks for them: sizes that no memory holds as a whole."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from compile.identity import hash_arrays
from compile.streamed import Streamed
from harness.sizes import BY_BLOCK, SIZES
from reference.checkpoint import all_finite, read
from reference.shape import CheckpointError
from reference.synthetic import VERSION, synthetic_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.checkpoints import Model
    from reference.checkpoint import Stored
    from reference.shape import ModelShape


@dataclass(frozen=True)
class Weights:
    """Where a model's tensors come from.

    Attributes:
        name: of the checkpoint.
        shape: of the model.
        arrays: all tensors, float32, by BlinkDL's names.
        recipe: what the values follow from where they are made rather than read; None where only they tell.
    """

    name: str
    shape: ModelShape
    arrays: Streamed
    recipe: str | None = None

    @cached_property
    def arrays_sha256(self) -> str:
        """Identity of all of them."""
        return self.sha256(list(self.arrays))

    def sha256(self, names: Sequence[str]) -> str:
        """Identity of some of the tensors: by the recipe where there is one, else by names, shapes and values."""
        if self.recipe is None:
            return hash_arrays(self.arrays.only(list(names)))
        return hashlib.sha256(repr((self.recipe, *sorted(names))).encode()).hexdigest()


def weights_of_size(size: str, seed: int = 0) -> Weights:
    """Synthetic ones of a published size.

    Raises:
        KeyError: it is none of SIZES and BY_BLOCK.
    """
    shape = (SIZES | BY_BLOCK)[size]
    # numpy's generators may change with a release, which its version says.
    recipe = repr((VERSION, np.__version__, astuple(shape), seed))
    name = f"synthetic-{size}-s{seed}"
    return Weights(name, shape, Streamed(shape.tensors(), partial(synthetic_tensor, shape, seed)), recipe)


def weights_of_file(path: Path) -> Weights:
    """A checkpoint's, from its file, which is mapped into memory and stays in its own dtype there.

    Raises:
        CheckpointError: it is no RWKV-7 checkpoint; a number that is not finite is found when its tensor is read.
    """
    reader = _Reader(path)
    return Weights(path.stem, reader.stored.shape, Streamed(reader.stored.shape.tensors(), reader))


def weights_of_model(model: Model) -> Weights:
    """Those of a model that is in memory already."""
    arrays = model.arrays
    shapes = {name: array.shape for name, array in arrays.items()}
    return Weights(model.checkpoint.name, model.checkpoint.shape, Streamed(shapes, arrays.__getitem__))


class _Reader:
    """Reads tensors of a checkpoint; in another process it opens the file again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[Path], _Reader], tuple[Path]]:
        return _Reader, (self._path,)

    @cached_property
    def stored(self) -> Stored:
        return read(self._path)

    def __call__(self, name: str) -> np.ndarray:
        tensor = self.stored.tensors[name]
        if not all_finite(tensor):
            raise CheckpointError(f"{self._path}: {name} holds NaN or Inf, but should hold finite numbers")
        return tensor.to(torch.float32, copy=True).contiguous().numpy()
