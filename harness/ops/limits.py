"""The caps of operations: per precision, in the tables ``ops`` of ``suites/limits.toml``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from compile.spec import Quantization  # noqa: TC001 - msgspec reads the annotations
from harness.limits import LIMITS

if TYPE_CHECKING:
    from pathlib import Path

    from harness.ops.expected import Distance


class OpLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Caps of one precision; a value equal to its cap passes, NaN never does."""

    nmse: float
    peak: float
    times_emulated: float  # the NMSE may be so many times that of rounding every intermediate value

    def breaches(self, distance: Distance, emulated: Distance) -> list[str]:
        """What is outside the caps, in words."""
        found = []
        if not distance.nmse <= self.nmse:
            found.append(f"nmse={distance.nmse:.2e}, but should be <= {self.nmse:.1e}")
        if not distance.peak <= self.peak:
            found.append(f"peak={distance.peak:.2e}, but should be <= {self.peak:.1e}")
        if not distance.nmse <= (most := self.times_emulated * emulated.nmse):
            found.append(
                f"nmse={distance.nmse:.2e}, but should be <= {most:.2e}, {self.times_emulated:g} times that of rounding"
            )
        return found


class _File(msgspec.Struct, frozen=True):
    ops: dict[Quantization, OpLimits]


def load_op_limits(path: Path = LIMITS) -> dict[Quantization, OpLimits]:
    """Read them.

    Raises:
        msgspec.ValidationError: the tables make no sense.
    """
    return msgspec.toml.decode(path.read_bytes(), type=_File).ops
