"""Files of a tuned initial state: one ``blocks.N.att.time_state`` a layer, nothing else.

BlinkDL's files hold it ``[H, N, N]`` with rows for keys and columns for values; :class:`reference.state.State` has it
the other way round. The time shifts are not in the file: a tuned state starts with zeros there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from reference.atomic import replacing
from reference.checkpoint import all_finite
from reference.formats import pth
from reference.shape import CheckpointError
from reference.state import State

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from reference.shape import ModelShape

_NAME = re.compile(r"blocks\.(0|[1-9][0-9]{0,8})\.att\.time_state")


def load_state(path: Path, shape: ModelShape) -> State:
    """Read a state file for a model of *shape*.

    Only ``.pth``: safetensors files in circulation hold these matrices in either orientation, and nothing in them
    tells which.

    Returns:
        A float32 state, its time shifts zero.

    Raises:
        CheckpointError: it cannot be read, is no state file, or is one of a model with other sizes.
    """
    tensors = pth.read_tensors(path)
    layers: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        found = _NAME.fullmatch(name)
        if found is None:
            hint = "; this is a checkpoint, not a state" if name == "emb.weight" else ""
            raise CheckpointError(f"{path}: holds {name}, but a state file holds blocks.N.att.time_state alone{hint}")
        layers[int(found[1])] = tensor
    if set(layers) != set(range(shape.n_layer)):
        raise CheckpointError(
            f"{path}: states of {len(layers)} layers up to number {max(layers, default=-1)}, "
            f"but the model has layers 0 to {shape.n_layer - 1}"
        )
    wanted = (shape.n_head, shape.head_size, shape.head_size)
    for i, tensor in layers.items():
        if tuple(tensor.shape) != wanted:
            raise CheckpointError(
                f"{path}: blocks.{i}.att.time_state has shape {tuple(tensor.shape)}, but the model needs {wanted}"
            )
        if not all_finite(tensor):
            raise CheckpointError(f"{path}: blocks.{i}.att.time_state holds NaN or Inf, but should hold finite numbers")
    state = State.zeros(shape, torch.float32)
    for i, tensor in layers.items():
        state.wkv[i] = tensor.transpose(1, 2)
    return state


def save_state(state: State, path: Path, *, drop_shifts: bool = False, force: bool = False) -> None:
    """Write *state* as a ``.pth`` state file, in the state's dtype.

    Args:
        state: what to write.
        path: where to; it appears whole or not at all.
        drop_shifts: leave the time shifts out though they are not zero: the model then forgets the last token, not
            what came before.
        force: replace an existing file.

    Raises:
        CheckpointError: the shifts are not zero and *drop_shifts* is not set, or the file exists or cannot be written.
    """
    if not drop_shifts and (bool(state.att_shift.any()) or bool(state.ffn_shift.any())):
        raise CheckpointError(
            f"{path}: the state's time shifts are not zero and a state file has no place for them: drop them, or save "
            "a state that was tuned"
        )
    matrices = {f"blocks.{i}.att.time_state": S.transpose(1, 2).contiguous() for i, S in enumerate(state.wkv)}
    with replacing(path, force=force) as made:
        pth.write(matrices, made)
