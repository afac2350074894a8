"""What is fed to nets that take rows of the embedding in place of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compile.host_embedding import host_table
from compile.options import Option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.cases import Case
    from harness.checkpoints import Model
    from runtime.nets import Floats


def embedding_for(cases: Iterable[Case], model: Model) -> Floats | None:
    """The table ``[V, C]`` that an engine of *cases* is opened with; None where the embedding is in all of them.

    The cases decide: an engine refuses a table that no net takes, and nets that take one without it.
    """
    return host_table(model.arrays) if any(Option.HOST_EMBEDDING in case.options for case in cases) else None
