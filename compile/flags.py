"""Flags of ``model_deploy`` that a model needs to compile at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compile.dims import Dims

if TYPE_CHECKING:
    from compile.dims import Arrays


def needed_flags(arrays: Arrays) -> tuple[str, ...]:
    """The flags for a model of these arrays.

    With a single head no product of the recurrence is batched, so nothing breaks the layers apart, and the compiler
    searches layer groups over the whole model: TPU-MLIR 1.30.2 took 33 s for a decode graph of 4 layers of width 64,
    and for 12 layers had not ended after 25 minutes, when it had filled 22 GB of memory. Without layer groups the same
    graph compiles in 4 s. (12 layers of width 128, with two heads, take 9 s with layer groups.)
    """
    return ("--disable_layer_group",) if Dims.of(arrays).H == 1 else ()
