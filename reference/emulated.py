"""The forward pass with the rounding of a compiled model: what a quantisation costs by itself, without any compiler.

Every operation is computed in float32 and its result rounded to the format, one rounding an operation. As in the
compiled graphs, layer norms, token shifts and the sum over time of the WKV state are exempt: they are float32
throughout, and so is the state. Matrices are rounded once, beforehand.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from reference.fast import Fast
from reference.formats.blinkdl import is_lora
from reference.precision import GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from torch import Tensor

    from reference.checkpoint import Checkpoint
    from reference.fast import Batch
    from reference.precision import Precision


_EMBEDDING_NORM = "blocks.0.ln0"
_LORA_SECOND = re.compile(r"\.att\.[wavg]2$")


def stored(
    checkpoint: Checkpoint, precision: Precision, group: int = GROUP, whole: re.Pattern[str] | None = None
) -> Checkpoint:
    """The checkpoint that a precision's weights stand for, in float32: what is left of each tensor once it is stored.

    *group* inputs of a matrix share a step; tensors whose whole name fits *whole* are stored in float32. Computed with
    in float64, it tells what a compiled model adds to the error of its format.
    """
    kept = {
        name: tensor if whole and whole.fullmatch(name) else _stored(name, tensor, precision, group)
        for name, tensor in checkpoint.tensors.items()
    }
    return replace(checkpoint, name=f"{checkpoint.name} in {precision.value}", tensors=kept)


def _stored(name: str, tensor: Tensor, precision: Precision, group: int = GROUP) -> Tensor:
    if name == "emb.weight" or (".ln" in f".{name}" and ".ln_x." not in name):
        return tensor  # graphs store the embedding behind its layer norm
    if tensor.dim() != 2 or name.endswith(".r_k"):
        return precision.keep(tensor)
    if _LORA_SECOND.search(name):
        return precision.keep_rank(tensor, group)
    # LoRA pairs are stored [in, out] as the format has it, other matrices the other way round.
    return (
        precision.keep_matrix(tensor, group) if is_lora(name) else precision.keep_matrix(tensor.T, group).T.contiguous()
    )


class Emulated(Fast):
    """The fast reference in float32, with results rounded to a format on the way."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, device: str | torch.device = "cpu") -> None:
        """Round the checkpoint's matrices and vectors; those of the layer norms stay as they are."""
        self.precision = precision
        self._rounding = _Rounding(precision)
        super().__init__(checkpoint, torch.float32, device)

    def _prepared(self, name: str, tensor: Tensor) -> Tensor:
        return super()._prepared(name, _stored(name, tensor, self.precision))

    def _block(
        self, i: int, x: Tensor, v_first: Tensor | None, before: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        with self._rounding:
            return super()._block(i, x, v_first, before, batch)

    def _head(self, hidden: Tensor) -> Tensor:
        with self._rounding:
            return super()._head(self.precision.keep(hidden))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        with self._rounding.paused():
            normed = super()._norm(x, name)
        return self.precision.keep(normed) if name == _EMBEDDING_NORM else normed

    def _shift(self, x: Tensor, before: Tensor, batch: Batch) -> tuple[tuple[Tensor, Tensor], Tensor]:
        with self._rounding.paused():
            return super()._shift(x, before, batch)

    def _wkv(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        with self._rounding.paused():
            y, S = super()._wkv(*arguments)
        return self.precision.keep(y), S


class _Rounding(TorchFunctionMode):
    """While entered, rounds the result of every torch function."""

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self._precision = precision
        self._on = True

    @contextmanager
    def paused(self) -> Generator[None]:
        was, self._on = self._on, False
        try:
            yield
        finally:
            self._on = was

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        rounds = self._on and isinstance(result, torch.Tensor) and result.dtype is torch.float32
        return self._precision.keep(result) if rounds else result
