"""What a checkpoint's tensors say about the model: sizes are read from the file, never assumed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

GROUP_NORM_EPS = 64e-5  # a constant of the releases' code, whatever the head size
LAYER_NORM_EPS = 1e-5
KEY_NORM_FLOOR = 1e-12

_LAYER = re.compile(r"blocks\.([0-9]{1,9})\.")


class CheckpointError(ValueError):
    """A file that is no RWKV-7 checkpoint: names the file, the tensor, what was expected and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRanks:
    """Inner widths of the four low-rank pairs."""

    decay: int
    rate: int
    value: int
    gate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of one RWKV-7 model, in elements."""

    n_layer: int
    n_embd: int
    head_size: int
    n_ffn: int
    n_vocab: int
    ranks: LoraRanks

    @property
    def n_head(self) -> int:
        """Heads of the time-mix: n_embd / head_size."""
        return self.n_embd // self.head_size

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that such a model has, in BlinkDL's names."""
        C, F, H, N = self.n_embd, self.n_ffn, self.n_head, self.head_size
        vector, square = (C,), (C, C)
        shapes: dict[str, tuple[int, ...]] = {"emb.weight": (self.n_vocab, C)}
        for i in range(self.n_layer):
            norms = ("ln0", "ln1", "ln2") if i == 0 else ("ln1", "ln2")
            shapes |= {f"blocks.{i}.{ln}.{part}": vector for ln in norms for part in ("weight", "bias")}
            att = f"blocks.{i}.att."
            shapes |= {att + x: vector for x in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g")}
            pairs = {"w": self.ranks.decay, "a": self.ranks.rate, "g": self.ranks.gate}
            if i > 0:
                pairs["v"] = self.ranks.value
            for q, rank in pairs.items():
                shapes |= {f"{att}{q}1": (C, rank), f"{att}{q}2": (rank, C)}
                if q != "g":
                    shapes[f"{att}{q}0"] = vector
            shapes |= {att + "k_k": vector, att + "k_a": vector, att + "r_k": (H, N)}
            shapes |= {f"{att}{m}.weight": square for m in ("receptance", "key", "value", "output")}
            shapes |= {att + "ln_x.weight": vector, att + "ln_x.bias": vector}
            ffn = f"blocks.{i}.ffn."
            shapes |= {ffn + "x_k": vector, ffn + "key.weight": (F, C), ffn + "value.weight": (C, F)}
        return shapes | {"ln_out.weight": vector, "ln_out.bias": vector, "head.weight": (self.n_vocab, C)}


def shape_of(tensors: Mapping[str, Tensor], source: str) -> ModelShape:
    """Read the sizes from canonical tensors and check every tensor against them.

    Args:
        tensors: canonical tensors (vectors ``[C]``, matrices ``[out, in]``, LoRA pairs ``[C, rank]`` and
            ``[rank, C]``, ``r_k [H, N]``), by BlinkDL's names.
        source: what to call the checkpoint in an error.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or belongs to another architecture.
    """

    def size(name: str, axis: int, rank: int = 2) -> int:
        if name not in tensors:
            raise CheckpointError(f"{source}: no tensor {name!r}; an RWKV-7 (x070) checkpoint has one")
        found = tuple(tensors[name].shape)
        if len(found) != rank:
            raise CheckpointError(f"{source}: {name} has shape {found}, but should have {rank} axes")
        return found[axis]

    layers = {int(layer[1]) for name in tensors if (layer := _LAYER.match(name))}
    n_layer = len(layers)
    if layers != set(range(n_layer)) or not layers:
        some = ", ".join(map(str, sorted(layers)[:20])) + (", …" if n_layer > 20 else "")
        raise CheckpointError(f"{source}: blocks {some or 'none'} found, but should be 0, 1, 2, … without a gap")
    shape = ModelShape(
        n_layer=n_layer,
        n_embd=size("emb.weight", 1),
        head_size=size("blocks.0.att.r_k", 1),
        n_ffn=size("blocks.0.ffn.key.weight", 0),
        n_vocab=size("emb.weight", 0),
        ranks=LoraRanks(
            decay=size("blocks.0.att.w1", 1),
            rate=size("blocks.0.att.a1", 1),
            value=size("blocks.1.att.v1", 1) if n_layer > 1 else 0,
            gate=size("blocks.0.att.g1", 1),
        ),
    )
    if shape.n_embd % shape.head_size:
        raise CheckpointError(f"{source}: width {shape.n_embd} is not a multiple of the head size {shape.head_size}")
    expected = shape.tensors()
    for name, want in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{source}: no tensor {name!r}, but should have one of shape {want}")
        found = tuple(tensors[name].shape)
        if found != want:
            raise CheckpointError(f"{source}: {name} has shape {found}, but should have {want}")
    if unknown := sorted(set(tensors) - set(expected)):
        raise CheckpointError(f"{source}: tensors that RWKV-7 (x070) does not have: {', '.join(unknown[:5])}")
    return shape
