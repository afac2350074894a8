"""What a bmodel of a precision is judged against: the reference, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compile.mixed import TABLES, tensors_of
from compile.options import WEIGHT_GROUPS
from compile.spec import DEFAULT_GROUP, Quantization
from harness.targets.torch import ReferenceTarget
from reference.emulated import stored
from reference.fast import Fast
from reference.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compile.options import Option
    from reference.checkpoint import Checkpoint

QUANTISED = {one: Precision(one.value) for one in Quantization if one.weight_bits}
"""Where weights are coded in a few bits, by a definition that can be computed without any compiler."""


def oracle_for(checkpoint: Checkpoint, quantization: Quantization, options: Iterable[Option] = ()) -> ReferenceTarget:
    """The reference for one precision, with the group size and the float32 operations that *options* say.

    The rounding of the oracle must not blur a verdict, hence float64. Codes of 8 or 4 bits cost a hundred to ten
    thousand times what float16 costs, and would hide any fault of that size: so a bmodel of such a precision is judged
    against the weights that its codes stand for. What those cost by themselves is no fault of a compiler; `rwkv-tpu
    lambada torch emulated-w4f16` tells.
    """
    if quantization in QUANTISED:
        asked = tuple(options)
        group = next((WEIGHT_GROUPS[option] for option in asked if option in WEIGHT_GROUPS), DEFAULT_GROUP)
        checkpoint = stored(checkpoint, QUANTISED[quantization], group, tensors_of(asked))
    return ReferenceTarget(Fast(checkpoint, torch.float64))


def that_matter(quantization: Quantization, options: Iterable[Option]) -> tuple[Option, ...]:
    """Those of *options* with which a precision has another oracle."""
    if quantization not in QUANTISED:
        return ()
    return tuple(option for option in options if option in WEIGHT_GROUPS or option in TABLES)
