"""A case of a checkpoint as the compiler takes it: the one place where a case's flags come together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compile.compiler import Job
from compile.dims import Dims
from compile.flags import needed_flags
from compile.options import with_options
from harness.cases import VARIANTS

if TYPE_CHECKING:
    from compile.toolchain import Toolchain
    from harness.cases import Case
    from harness.checkpoints import Model


def job_of(case: Case, model: Model, toolchain: Toolchain) -> Job:
    """What to compile for a case: the flags that its graph gets anyway, then those of its options."""
    return Job(
        arrays=model.arrays,
        arrays_sha256=model.arrays_sha256,
        variant=VARIANTS[case.variant],
        spec=case.graph,
        quantization=case.quantization,
        flags=with_options(needed_flags(model.arrays, case.graph), case.options, Dims.of(model.arrays).L),
        toolchain=toolchain,
    )
