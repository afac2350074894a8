"""What one test of a suite finds out: judged on the spot, kept for its record."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING

import pytest

from harness.metrics import logits_distance, state_max_abs_error, state_nmse, text_change
from reports.schema import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np

    from compile.compiler import Bmodel
    from harness.limits import Limits
    from harness.metrics import LogitsDistance
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

    def logits(self, want: Output, got: Output, *, text: Sequence[int] = ()) -> None:
        """Judge *got* at the positions that it gives, against the logits ``[T, V]`` of *want*.

        Where *want* knows what the precision costs in torch, *got* may be a number of times that away, and no more.

        Args:
            want: the oracle's, of every position.
            got: what is judged.
            text: what was fed, if it is a text whose next tokens should stay as likely as they are.

        Raises:
            AssertionError: outside the caps; the message names metric, value, cap and position.
        """
        __tracebackhide__ = True
        limits = self._numerics()
        rows = want.logits[list(got.positions)]
        assert got.logits.shape == rows.shape, f"logits of shape {got.logits.shape}, but should be {rows.shape}"
        distance = logits_distance(rows, got.logits, near_tie_nats=limits.near_tie_nats)
        distance = replace(distance, worst_position=got.positions[distance.worst_position])  # of the text, for messages
        has_mean = distance.positions >= limits.mean_from_positions
        if has_mean:
            self._keep_mean(distance)
        self._keep_worst("kl_worst_nats", distance.kl_worst_nats)
        self._keep_worst("top1_share", distance.top1_share, low_is_bad=True)
        if not self.kl_by_position or _worst(distance.kl_nats) > _worst(self.kl_by_position.values()):
            self.kl_by_position = dict(zip(got.positions, distance.kl_nats, strict=True))
        self.metrics["positions"] = self.metrics.get("positions", 0) + len(rows)
        self.metrics["near_ties"] = self.metrics.get("near_ties", 0) + distance.near_ties
        breaches = limits.breaches(distance)
        if distance.finite:
            breaches += self._text(rows, got, text)
        assert not breaches, "; ".join(breaches)
        if want.emulated is not None:
            emulated = cache(partial(_emulated_distance, want, limits.near_tie_nats))
            if has_mean:
                self._beyond_emulated("kl_mean_nats", distance.kl_mean_nats, lambda: emulated().kl_mean_nats)
            self._beyond_emulated("kl_worst_nats", distance.kl_worst_nats, lambda: emulated().kl_worst_nats)

    def _text(self, rows: np.ndarray, got: Output, text: Sequence[int]) -> list[str]:
        """Judge the probabilities of the tokens that come next in *text*."""
        at = [i for i, position in enumerate(got.positions) if position + 1 < len(text)]
        if not at:
            return []
        change = text_change(rows[at], got.logits[at], [text[got.positions[i] + 1] for i in at])
        self._keep_worst("delta_p_rms", change.delta_p_rms)
        if len(at) > 1:
            self.metrics["perplexity_ratio"] = change.perplexity_ratio
            self.metrics["perplexity_ratio_se"] = change.perplexity_ratio_se
        return self._numerics().text_breaches(change)

    def _beyond_emulated(self, name: str, value: float, emulated: Callable[[], float], of: str = "") -> None:
        """Judge a value within its cap by what the same precision costs in torch."""
        __tracebackhide__ = True
        limits = self._numerics()
        times = limits.times(name, value, emulated)
        if times is None:
            return
        ratio, most = limits.most_times(name)
        self._keep_worst(ratio, times)
        where = f" of {of}" if of else ""
        words = f"{times:.1f} times what the precision costs in torch, but should be <= {most:g} times"
        assert times <= most, f"{name}={value:.2e}{where}, {words}"

    def of_hard_weights(self) -> None:
        """From here on, the model is one whose weights were made hard on purpose."""
        self.limits = self._numerics().hard()

    def total(self, reference: np.ndarray, got: Output) -> None:
        """Record, without a verdict, how far *got* is from the checkpoint's own weights: the whole cost."""
        rows = reference[list(got.positions)]
        self._keep_worst("total_kl_mean_nats", logits_distance(rows, got.logits, near_tie_nats=0.0).kl_mean_nats)

    def state(self, want: Output, got: Sequence[np.ndarray]) -> None:
        """Judge every kind of state against that of *want*; see `logits` for what the precision costs in torch.

        Raises:
            AssertionError: outside the cap; the message names the kind.
        """
        __tracebackhide__ = True
        limits = self._numerics()
        errors = state_nmse(want.state, got)
        largest = state_max_abs_error(want.state, got)
        for kind, error in errors.items():
            self._keep_worst("state_nmse", error)
            self._keep_worst("state_max_abs_error", largest[kind])
        # Of a kind that is wrong altogether, its largest error says the same once more.
        within = {kind: error for kind, error in largest.items() if errors[kind] <= limits.state_nmse}
        breaches = limits.state_breaches(errors) + limits.state_max_breaches(within)
        assert not breaches, "; ".join(breaches)
        if want.emulated is not None:
            emulated = cache(partial(_emulated_state, want))
            for kind, error in errors.items():
                self._beyond_emulated("state_nmse", error, lambda kind=kind: emulated()[kind], of=kind)  # type: ignore[misc]

    def equal(self, expected: object, got: object, what: str) -> None:
        """Judge something that has one right value.

        Raises:
            AssertionError: it has another one.
        """
        __tracebackhide__ = True
        self.stage = Stage.NUMERICS
        assert got == expected, f"{what}: got {got}, but should be {expected}"

    @property
    def near_tie_nats(self) -> float:
        """Tokens that the reference holds for as likely as each other, to this, cannot be told apart."""
        return self._numerics().near_tie_nats

    @property
    def lambada_nats(self) -> float:
        """How far the mean log-likelihood of a document may be from the reference's."""
        return self._numerics().lambada_nats

    def _numerics(self) -> Limits:
        self.stage = Stage.NUMERICS
        assert self.limits is not None, "a check of logits or state needs a case, whose precision decides the caps"
        return self.limits

    def _keep_mean(self, distance: LogitsDistance) -> None:
        """The mean over positions, with what tells how it came about, of the judgement with the worst one."""
        before = self.metrics.get("kl_mean_nats", -math.inf)
        if not distance.kl_mean_nats <= before:
            self.metrics["kl_mean_se_nats"] = distance.kl_mean_se_nats
            self.metrics["kl_median_nats"] = distance.kl_median_nats
            self.metrics["kl_p99_nats"] = distance.kl_p99_nats
        self._keep_worst("kl_mean_nats", distance.kl_mean_nats)

    def _keep_worst(self, name: str, value: float, *, low_is_bad: bool = False) -> None:
        """NaN is worse than any number."""
        before = self.metrics.get(name, value)
        worse = min(before, value) if low_is_bad else max(before, value)
        self.metrics[name] = math.nan if math.isnan(before) or math.isnan(value) else worse


def _emulated_distance(want: Output, near_tie_nats: float) -> LogitsDistance:
    """How far the emulated precision is from the reference, over every position: of one alone, it is chance."""
    assert want.emulated is not None
    return logits_distance(want.logits, want.emulated().logits, near_tie_nats=near_tie_nats)


def _emulated_state(want: Output) -> dict[str, float]:
    assert want.emulated is not None
    return state_nmse(want.state, want.emulated().state)


def _worst(kl_nats: Iterable[float]) -> float:
    """NaN is worse than any number."""
    return max(math.inf if math.isnan(kl) else kl for kl in kl_nats)
