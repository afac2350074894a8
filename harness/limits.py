"""The caps that decide between right and wrong: data, per precision, in ``suites/limits.toml``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from compile.spec import Quantization

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.metrics import LogitsDistance

LIMITS = Path(__file__).parent.parent / "suites" / "limits.toml"


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Caps of one precision; a value equal to its cap passes, NaN never does."""

    kl_mean_nats: float
    kl_worst_nats: float
    mean_from_positions: int  # on fewer, the mean is an outlier's: only the worst position is judged
    top1_share: float  # at least this
    near_tie_nats: float
    state_nmse: float

    def breaches(self, distance: LogitsDistance) -> list[str]:
        """What is outside the caps, in words; empty for logits that pass."""
        if not distance.finite:
            return [f"NaN or Inf among the logits, first at position {distance.worst_position}"]
        found = []
        if distance.positions >= self.mean_from_positions and not distance.kl_mean_nats <= self.kl_mean_nats:
            found.append(f"kl_mean_nats={distance.kl_mean_nats:.2e}, but should be <= {self.kl_mean_nats:.1e}")
        if not distance.kl_worst_nats <= self.kl_worst_nats:
            found.append(
                f"kl_worst_nats={distance.kl_worst_nats:.2e} at position {distance.worst_position}, "
                f"but should be <= {self.kl_worst_nats:.1e}"
            )
        if not distance.top1_share >= self.top1_share:
            found.append(f"top1_share={distance.top1_share:.4f}, but should be >= {self.top1_share}")
        return found

    def state_breaches(self, nmse: Mapping[str, float]) -> list[str]:
        """The same for the NMSE of each kind of state."""
        return [
            f"state_nmse={error:.2e} of {kind}, but should be <= {self.state_nmse:.1e}"
            for kind, error in nmse.items()
            if not error <= self.state_nmse
        ]


def load_limits(path: Path = LIMITS) -> tuple[dict[Quantization, Limits], str]:
    """Read the caps of every precision that has some, and the file's SHA-256.

    Raises:
        msgspec.ValidationError: the file is not one of caps.
    """
    text = path.read_bytes()
    tables = msgspec.toml.decode(text, type=dict[str, Any])
    tables.pop("ops", None)  # those of harness.ops.limits
    return msgspec.convert(tables, dict[Quantization, Limits]), hashlib.sha256(text).hexdigest()
