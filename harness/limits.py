"""The caps that decide between right and wrong: data, per precision, in ``suites/limits.toml``."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from compile.options import Option
from compile.spec import Quantization

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.cases import Case
    from harness.metrics import LogitsDistance, TextChange

LIMITS = Path(__file__).parent.parent / "suites" / "limits.toml"

MOST_TIMES = 3.0
"""A cap may be this many times the worst value of a good run, and no more."""

CAPS = ("kl_mean_nats", "kl_worst_nats", "delta_p_rms", "state_nmse", "state_max_abs_error")
"""Metrics that must not be larger than their caps."""

RATIOS = ("times_emulated", "state_times_emulated")
"""How many times what the precision costs in torch: of logits, and of states."""


class LimitsError(ValueError):
    """Caps that are not allowed: names the file, the precision, the cap and what should be."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Caps of one precision; a value equal to its cap passes, NaN never does.

    Attributes:
        mean_from_positions: on fewer, the mean is an outlier's: only the worst position is judged.
        top1_share: at least this.
        times_emulated: how many times what the precision costs in torch a bmodel's logits may be away; see `times`.
        state_times_emulated: the same of its states.
        hard_times: on weights made hard on purpose, the caps of the KL divergence are so many times as high: there a
            precision by itself costs more than on any model that was trained. `times_emulated` holds all the same.
        asked_from: share of a cap that passes whatever the precision costs in torch.
        lambada_nats: how far the mean log-likelihood of a document of LAMBADA may surely be from the reference's.
        worst_good: the worst value of each metric over good runs, by ``rwkv-tpu calibrate``.
        began: what a cap began at, where it was loosened since.
        reasons: why a cap is looser than it began.
        f16_state: the caps where states are float16 between calls (option ``f16_state``): of drift too, since one that
            is rounded in each call drifts as it pleases where nothing caps it. None where such a state has none.
    """

    kl_mean_nats: float
    kl_worst_nats: float
    mean_from_positions: int
    top1_share: float
    near_tie_nats: float
    delta_p_rms: float
    state_nmse: float
    state_max_abs_error: float
    times_emulated: float
    state_times_emulated: float
    hard_times: float
    asked_from: float
    lambada_nats: float
    worst_good: dict[str, float] = {}
    began: dict[str, float] = {}
    reasons: dict[str, str] = {}
    f16_state: Limits | None = None

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

    def text_breaches(self, change: TextChange) -> list[str]:
        """The same for the probabilities of the tokens that come next."""
        if change.delta_p_rms <= self.delta_p_rms:
            return []
        return [f"delta_p_rms={change.delta_p_rms:.2e}, but should be <= {self.delta_p_rms:.1e}"]

    def state_breaches(self, nmse: Mapping[str, float]) -> list[str]:
        """The same for the NMSE of each kind of state."""
        return self._of_kinds("state_nmse", nmse)

    def state_max_breaches(self, errors: Mapping[str, float]) -> list[str]:
        """The same for the largest error of each kind of state."""
        return self._of_kinds("state_max_abs_error", errors)

    def _of_kinds(self, name: str, errors: Mapping[str, float]) -> list[str]:
        cap: float = getattr(self, name)
        return [
            f"{name}={error:.2e} of {kind}, but should be <= {cap:.1e}"
            for kind, error in errors.items()
            if not error <= cap
        ]

    def hard(self) -> Limits:
        """The caps for weights made hard on purpose."""
        t = self.hard_times
        return msgspec.structs.replace(self, kl_mean_nats=t * self.kl_mean_nats, kl_worst_nats=t * self.kl_worst_nats)

    def most_times(self, name: str) -> tuple[str, float]:
        """The ratio that judges a metric, by its name, and the most that it may be."""
        ratio = "state_times_emulated" if name.startswith("state_") else "times_emulated"
        return ratio, getattr(self, ratio)

    def times(self, name: str, value: float, emulated: Callable[[], float]) -> float | None:
        """How many times what the same precision costs in torch *value* of a metric is; None where that is not asked.

        A value below a share of the cap passes in any case: of what hardly differs from the reference, the ratio is
        chance. So for most good bmodels nothing is computed at all.
        """
        cap: float = getattr(self, name)
        if value <= self.asked_from * cap:
            return None
        cost, (_, k) = emulated(), self.most_times(name)
        return value / max(cost, self.asked_from * cap / k) if math.isfinite(cost) else None


def limits_for(every: Mapping[Quantization, Limits], case: Case) -> Limits:
    """The caps of a case: those of its precision, or of that with states in float16.

    Raises:
        LimitsError: there are none.
    """
    name, limits = case.quantization.value, every.get(case.quantization)
    if limits is not None and Option.F16_STATE in case.options:
        name, limits = f"{name}.{Option.F16_STATE.value}", limits.f16_state
    if limits is None:
        raise LimitsError(f"suites/limits.toml has no caps for {name}: add a table [{name}]")
    return limits


def load_limits(path: Path = LIMITS) -> tuple[dict[Quantization, Limits], str]:
    """Read the caps of every precision that has some, and the file's SHA-256.

    Raises:
        msgspec.ValidationError: the file is not one of caps.
        LimitsError: a cap is above what good runs allow, or was loosened without a reason.
    """
    text = path.read_bytes()
    tables = msgspec.toml.decode(text, type=dict[str, Any])
    tables.pop("ops", None)  # those of harness.ops.limits
    limits = msgspec.convert(tables, dict[Quantization, Limits])
    for quantization, of_precision in limits.items():
        tables_of = {quantization.value: of_precision, f"{quantization.value}.f16_state": of_precision.f16_state}
        for name, table in tables_of.items():
            if table is not None and (problems := wrong_caps(table)):
                raise LimitsError(f"{path}: [{name}] {problems[0]}")
    return limits, hashlib.sha256(text).hexdigest()


def wrong_caps(limits: Limits) -> list[str]:
    """What is not allowed about the caps, in words."""
    found = []
    for name in CAPS:
        cap, good = getattr(limits, name), limits.worst_good.get(name)
        if good is None:
            found.append(f"{name} has no entry in worst_good: run rwkv-tpu calibrate on good runs")
        elif not cap <= MOST_TIMES * good * (1 + 1e-9):
            most = MOST_TIMES * good
            found.append(f"{name} = {cap:g}, but should be <= {most:.3g}: {MOST_TIMES:g} times {good:g} of good runs")
        if cap > limits.began.get(name, cap) and not limits.reasons.get(name, "").strip():
            found.append(f"{name} = {cap:g} began at {limits.began[name]:g}: say in reasons why it was loosened")
    for name in RATIOS:
        k, good = getattr(limits, name), limits.worst_good.get(name, math.inf)
        if not k <= MOST_TIMES * good:
            found.append(f"{name} = {k:g}, but should be <= {MOST_TIMES * good:.3g}: {good:g} in good runs")
    for table in ("worst_good", "began", "reasons"):
        unknown = sorted(getattr(limits, table).keys() - {*CAPS, *RATIOS})
        if unknown:
            found.append(f"{table} has {unknown[0]!r}, which is no cap; there are {', '.join(CAPS)}")
    return found
