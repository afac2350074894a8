"""Files of a tuned initial state: one ``blocks.N.att.time_state`` a layer, as BlinkDL's files have it.

It is ``[H, N, N]`` with rows for keys and columns for values; :class:`reference.state.State` has it the other way
round. Such a state begins with token shifts of zeros. Where the shifts were tuned too, the file holds them as
``blocks.N.att.shift_state`` and ``blocks.N.ffn.shift_state``, ``[C]``: names of this project, which others do not read.
"""

from __future__ import annotations

import re
from enum import Enum
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

_NAME = re.compile(r"blocks\.(0|[1-9][0-9]{0,8})\.(att\.time_state|att\.shift_state|ffn\.shift_state)")


def load_state(path: Path, shape: ModelShape) -> State:
    """Read a state file for a model of *shape*.

    Only ``.pth``: safetensors files in circulation hold these matrices in either orientation, and nothing in them
    tells which.

    Returns:
        A float32 state; its token shifts are zero where the file has none.

    Raises:
        CheckpointError: it cannot be read, is no state file, or is one of a model with other sizes.
    """
    tensors = pth.read_tensors(path)
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _NAME.fullmatch(name)
        if found is None:
            hint = "; this is a checkpoint, not a state" if name == "emb.weight" else ""
            raise CheckpointError(f"{path}: holds {name}, but a state file holds blocks.N.att.time_state alone{hint}")
        parts.setdefault(found[2], {})[int(found[1])] = tensor
    matrices = (shape.n_head, shape.head_size, shape.head_size)
    state = State.zeros(shape, torch.float32)
    for i, tensor in _layers(parts, "att.time_state", matrices, shape, path).items():
        state.wkv[i] = tensor.transpose(1, 2)
    if len(parts) > 1:
        for part, shift in (("att.shift_state", state.att_shift), ("ffn.shift_state", state.ffn_shift)):
            for i, tensor in _layers(parts, part, (shape.n_embd,), shape, path).items():
                shift[i] = tensor
    return state


def _layers(
    parts: dict[str, dict[int, Tensor]], part: str, wanted: tuple[int, ...], shape: ModelShape, path: Path
) -> dict[int, Tensor]:
    """One kind of tensor by layer, checked."""
    layers = parts.get(part, {})
    if set(layers) != set(range(shape.n_layer)):
        raise CheckpointError(
            f"{path}: {part} of {len(layers)} layers up to number {max(layers, default=-1)}, "
            f"but the model has layers 0 to {shape.n_layer - 1}"
        )
    for i, tensor in layers.items():
        if tuple(tensor.shape) != wanted:
            raise CheckpointError(
                f"{path}: blocks.{i}.{part} has shape {tuple(tensor.shape)}, but the model needs {wanted}"
            )
        if not all_finite(tensor):
            raise CheckpointError(f"{path}: blocks.{i}.{part} holds NaN or Inf, but should hold finite numbers")
    return layers


class Shifts(Enum):
    """What becomes of token shifts that are not zero when a state is written."""

    REFUSE = "refuse"
    """An error."""

    DROP = "drop"
    """They are left out: the model then forgets the last token, not what came before."""

    KEEP = "keep"
    """They are written, under names that other programs do not read."""


def save_state(state: State, path: Path, *, shifts: Shifts = Shifts.REFUSE, force: bool = False) -> None:
    """Write *state* as a ``.pth`` state file, in the state's dtype.

    Args:
        state: what to write.
        path: where to; it appears whole or not at all.
        shifts: what becomes of token shifts that are not zero.
        force: replace an existing file.

    Raises:
        CheckpointError: the shifts are not zero and refused, or the file exists or cannot be written.
    """
    tensors = {f"blocks.{i}.att.time_state": S.transpose(1, 2).contiguous() for i, S in enumerate(state.wkv)}
    if bool(state.att_shift.any()) or bool(state.ffn_shift.any()):
        if shifts is Shifts.REFUSE:
            raise CheckpointError(
                f"{path}: the state's token shifts are not zero, and BlinkDL's state files have no place for them: "
                "drop them, keep them under names of this project, or save a state that was tuned without"
            )
        if shifts is Shifts.KEEP:
            tensors |= {f"blocks.{i}.att.shift_state": row.contiguous() for i, row in enumerate(state.att_shift)}
            tensors |= {f"blocks.{i}.ffn.shift_state": row.contiguous() for i, row in enumerate(state.ffn_shift)}
    with replacing(path, force=force) as made:
        pth.write(tensors, made)
