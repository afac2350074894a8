"""What a bmodel of a precision is judged against: the reference, in float64."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

import torch

from compile.mixed import TABLES, tensors_of
from compile.options import WEIGHT_GROUPS, Option
from compile.spec import DEFAULT_GROUP, Quantization
from harness.targets.torch import ReferenceTarget
from reference.emulated import Emulated, stored
from reference.fast import Fast
from reference.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reference.checkpoint import Checkpoint

QUANTISED = {one: Precision(one.value) for one in Quantization if one.weight_bits}
"""Where weights are coded in a few bits, by a definition that can be computed without any compiler."""


def oracle_for(checkpoint: Checkpoint, quantization: Quantization, options: Iterable[Option] = ()) -> ReferenceTarget:
    """The reference for one precision, with the group size and the float32 operations that *options* say.

    The rounding of the oracle must not blur a verdict, hence float64. Codes of 8 or 4 bits cost a hundred to ten
    thousand times what float16 costs, and would hide any fault of that size: so a bmodel of such a precision is judged
    against the weights that its codes stand for. What those cost by themselves is no fault of a compiler; `rwkv-tpu
    lambada torch emulated-w4f16` tells.

    It also knows what the precision costs by itself in torch, where no option changes that.
    """
    return Oracles(checkpoint).of(quantization, options)


def that_matter(quantization: Quantization, options: Iterable[Option]) -> tuple[Option, ...]:
    """Those of *options* with which a precision has another oracle."""
    if quantization not in QUANTISED:
        return ()
    return tuple(option for option in options if option in WEIGHT_GROUPS or option in TABLES)


class Oracles:
    """The oracles of one checkpoint; precisions that are judged against the same weights share a reference."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._reference = cache(self._make)
        self._target = cache(self._judge)

    def of(self, quantization: Quantization, options: Iterable[Option] = ()) -> ReferenceTarget:
        """The oracle of a precision; see :func:`oracle_for`."""
        asked = tuple(options)
        plain = not any(option in WEIGHT_GROUPS or option in TABLES or option is Option.F16_STATE for option in asked)
        return self._target(quantization, that_matter(quantization, asked), plain)

    def _judge(self, quantization: Quantization, options: tuple[Option, ...], plain: bool) -> ReferenceTarget:  # noqa: FBT001
        reference = self._reference(QUANTISED.get(quantization), options)
        if not plain or quantization.value not in {precision.value for precision in Precision}:
            return ReferenceTarget(reference)
        return ReferenceTarget(reference, partial(Emulated, self._checkpoint, Precision(quantization.value)))

    def _make(self, precision: Precision | None, options: tuple[Option, ...]) -> Fast:
        if precision is None:
            return Fast(self._checkpoint, torch.float64)
        group = next((WEIGHT_GROUPS[option] for option in options if option in WEIGHT_GROUPS), DEFAULT_GROUP)
        return Fast(stored(self._checkpoint, precision, group, tensors_of(options)), torch.float64)
