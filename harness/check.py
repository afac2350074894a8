"""What one test of a suite finds out: judged on the spot, kept for its record."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from harness.metrics import logits_distance, state_nmse
from reports.schema import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    from compile.compiler import Bmodel
    from harness.limits import Limits
    from harness.targets.base import Output

CHECK = pytest.StashKey["Check"]()
"""Where a test keeps what it found out."""


@dataclass
class Check:
    """The verdicts of one test, and how it came to them.

    Attributes:
        limits: the caps of the case's precision.
        stage: how far the test has got; where it fails, this is the stage that the record names.
        metrics: the worst of each metric over everything judged so far.
        kl_by_position: KL divergence in nats by index of token, of the judgement whose worst position is the worst.
        bmodels: what was compiled or found for it, the case's own first.
        bmodel_sha256: of the file that has the case's net.
        runtime: versions and hashes of the libraries that ran.
        notes: what a reader of the metrics must know, for the record's message.
    """

    limits: Limits | None = None
    stage: Stage | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    kl_by_position: dict[int, float] = field(default_factory=dict)
    bmodels: list[Bmodel] = field(default_factory=list)
    bmodel_sha256: str = ""
    runtime: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def logits(self, reference: np.ndarray, got: Output) -> None:
        """Judge *got* at the positions that it gives, against the reference's logits ``[T, V]``.

        Raises:
            AssertionError: outside the caps; the message names metric, value, cap and position.
        """
        __tracebackhide__ = True
        limits = self._numerics()
        rows = reference[list(got.positions)]
        assert got.logits.shape == rows.shape, f"logits of shape {got.logits.shape}, but should be {rows.shape}"
        distance = logits_distance(rows, got.logits, near_tie_nats=limits.near_tie_nats)
        distance = replace(distance, worst_position=got.positions[distance.worst_position])  # of the text, for messages
        if distance.positions >= limits.mean_from_positions:
            self._keep_worst("kl_mean_nats", distance.kl_mean_nats)
        self._keep_worst("kl_worst_nats", distance.kl_worst_nats)
        self._keep_worst("top1_share", distance.top1_share, low_is_bad=True)
        if not self.kl_by_position or _worst(distance.kl_nats) > _worst(self.kl_by_position.values()):
            self.kl_by_position = dict(zip(got.positions, distance.kl_nats, strict=True))
        self.metrics["positions"] = self.metrics.get("positions", 0) + len(rows)
        self.metrics["near_ties"] = self.metrics.get("near_ties", 0) + distance.near_ties
        breaches = limits.breaches(distance)
        assert not breaches, "; ".join(breaches)

    def total(self, reference: np.ndarray, got: Output) -> None:
        """Record, without a verdict, how far *got* is from the checkpoint's own weights: the whole cost."""
        rows = reference[list(got.positions)]
        self._keep_worst("total_kl_mean_nats", logits_distance(rows, got.logits, near_tie_nats=0.0).kl_mean_nats)

    def state(self, reference: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> None:
        """Judge every kind of state against the reference's.

        Raises:
            AssertionError: outside the cap; the message names the kind.
        """
        __tracebackhide__ = True
        limits = self._numerics()
        errors = state_nmse(reference, got)
        for error in errors.values():
            self._keep_worst("state_nmse", error)
        breaches = limits.state_breaches(errors)
        assert not breaches, "; ".join(breaches)

    def equal(self, expected: object, got: object, what: str) -> None:
        """Judge something that has one right value.

        Raises:
            AssertionError: it has another one.
        """
        __tracebackhide__ = True
        self.stage = Stage.NUMERICS
        assert got == expected, f"{what}: got {got}, but should be {expected}"

    def _numerics(self) -> Limits:
        self.stage = Stage.NUMERICS
        assert self.limits is not None, "a check of logits or state needs a case, whose precision decides the caps"
        return self.limits

    def _keep_worst(self, name: str, value: float, *, low_is_bad: bool = False) -> None:
        """NaN is worse than any number."""
        before = self.metrics.get(name, value)
        worse = min(before, value) if low_is_bad else max(before, value)
        self.metrics[name] = math.nan if math.isnan(before) or math.isnan(value) else worse


def _worst(kl_nats: Iterable[float]) -> float:
    """NaN is worse than any number."""
    return max(math.inf if math.isnan(kl) else kl for kl in kl_nats)
