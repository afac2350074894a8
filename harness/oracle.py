"""What a bmodel of a precision is judged against: the reference, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compile.spec import Quantization
from harness.targets.torch import ReferenceTarget
from reference.emulated import stored
from reference.fast import Fast
from reference.precision import Precision

if TYPE_CHECKING:
    from reference.checkpoint import Checkpoint

QUANTISED = {Quantization.W8F16: Precision.W8F16, Quantization.W4F16: Precision.W4F16}
"""Where weights are coded in a few bits, by a definition that can be computed without any compiler."""


def oracle_for(checkpoint: Checkpoint, quantization: Quantization) -> ReferenceTarget:
    """The reference for one precision.

    The rounding of the oracle must not blur a verdict, hence float64. Codes of 8 or 4 bits cost a hundred to ten
    thousand times what float16 costs, and would hide any fault of that size: so a bmodel of such a precision is judged
    against the weights that its codes stand for. What those cost by themselves is no fault of a compiler; `rwkv-tpu
    lambada torch emulated-w4f16` tells.
    """
    if quantization in QUANTISED:
        checkpoint = stored(checkpoint, QUANTISED[quantization])
    return ReferenceTarget(Fast(checkpoint, torch.float64))
