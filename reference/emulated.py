"""The forward pass with the rounding of a compiled model: what a quantisation costs by itself, without any compiler.

Every operation is computed in float32 and its result rounded to the format, one rounding an operation. As in the
compiled graphs, layer norms, token shifts and the sum over time of the WKV state are exempt: they are float32
throughout, and so is the state. Matrices are rounded once, beforehand.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from reference.fast import Fast

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from torch import Tensor

    from reference.checkpoint import Checkpoint
    from reference.fast import Batch
    from reference.precision import Precision


_LORA_SECOND = re.compile(r"\.att\.[wavg]2$")


class Emulated(Fast):
    """The fast reference in float32, with results rounded to a format on the way."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, device: str | torch.device = "cpu") -> None:
        """Round the checkpoint's matrices and vectors; those of the layer norms stay as they are."""
        self.precision = precision
        self._rounding = _Rounding(precision)
        super().__init__(checkpoint, torch.float32, device)

    def _prepared(self, name: str, tensor: Tensor) -> Tensor:
        prepared = super()._prepared(name, tensor)
        if ".ln" in f".{name}" and ".ln_x." not in name:
            return prepared
        is_matrix = prepared.dim() == 2 and name != "emb.weight" and not name.endswith(".r_k")
        if not is_matrix:
            return self.precision.keep(prepared)
        keep = self.precision.keep_rank if _LORA_SECOND.search(name) else self.precision.keep_matrix
        return keep(prepared.T).T.contiguous()

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
            return super()._norm(x, name)

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
