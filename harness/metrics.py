"""How far two models' logits and states are apart: unitless or in nats, every position, the worst one included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Array = np.ndarray


def log_softmax(logits: Array) -> Array:
    """Natural log-probabilities ``[T, V]`` in float64 of logits ``[T, V]``."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def kl_divergence(reference: Array, got: Array) -> Array:
    """KL divergence of *got* from *reference* at each position, in nats.

    KL_t = sum_i P_i (ln P_i - ln Q_i), with P the softmax of the reference. Takes logits ``[T, V]``, returns ``[T]``.
    """
    log_p, log_q = log_softmax(reference), log_softmax(got)
    result: Array = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return result


def nmse(reference: Array, got: Array) -> float:
    """Squared error of *got* over the energy of *reference*; equal shapes, unitless: 0 is exact, 1 as bad as zeros."""
    reference, got = reference.astype(np.float64), got.astype(np.float64)
    error, energy = float(((got - reference) ** 2).sum()), float((reference**2).sum())
    if energy == 0.0:
        return 0.0 if error == 0.0 else np.inf
    return error / energy


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsDistance:
    """How far logits are from the reference's.

    Attributes:
        positions: how many were compared.
        finite: whether every logit is a finite number; where not, the figures over all positions are NaN.
        kl_nats: KL divergence of each position; NaN where one of its logits is not finite.
        kl_mean_nats: KL divergence, mean over positions.
        kl_mean_se_nats: standard error of that mean, as if positions were independent; NaN of a single one.
        kl_median_nats, kl_p99_nats: quantiles over positions, interpolated between two of them.
        kl_worst_nats: KL divergence of the worst position.
        worst_position: index of that position.
        top1_share: share of positions, near-ties left out, whose likeliest token is the reference's.
        near_ties: positions left out, because the reference's two likeliest tokens are too close to tell apart.
    """

    positions: int
    finite: bool
    kl_nats: tuple[float, ...]
    kl_mean_nats: float
    kl_mean_se_nats: float
    kl_median_nats: float
    kl_p99_nats: float
    kl_worst_nats: float
    worst_position: int
    top1_share: float
    near_ties: int


def logits_distance(reference: Array, got: Array, *, near_tie_nats: float) -> LogitsDistance:
    """Compare logits ``[T, V]`` position by position.

    Args:
        reference: the oracle's logits.
        got: the logits to judge.
        near_tie_nats: positions where the reference's best two tokens are closer than this do not count for top-1.

    Raises:
        ValueError: the shapes differ, or there is no position.
    """
    if reference.shape != got.shape or reference.ndim != 2 or not len(reference):
        raise ValueError(f"logits of shape {got.shape}, but should be {reference.shape}: [positions, vocabulary]")
    finite = np.isfinite(got).all(axis=-1)
    kl = np.full(len(got), np.nan)
    kl[finite] = kl_divergence(reference[finite], got[finite])
    if not finite.all():
        nan = float("nan")
        return LogitsDistance(
            positions=len(got),
            finite=False,
            kl_nats=tuple(kl.tolist()),
            kl_mean_nats=nan,
            kl_mean_se_nats=nan,
            kl_median_nats=nan,
            kl_p99_nats=nan,
            kl_worst_nats=nan,
            worst_position=int(finite.argmin()),
            top1_share=nan,
            near_ties=0,
        )
    best_two = np.partition(reference, -2, axis=-1)[:, -2:] if reference.shape[1] > 1 else None
    clear = np.ones(len(reference), bool) if best_two is None else best_two[:, 1] - best_two[:, 0] > near_tie_nats
    agree = reference.argmax(axis=-1) == got.argmax(axis=-1)
    return LogitsDistance(
        positions=len(got),
        finite=True,
        kl_nats=tuple(kl.tolist()),
        kl_mean_nats=float(kl.mean()),
        kl_mean_se_nats=standard_error(kl),
        kl_median_nats=float(np.median(kl)),
        kl_p99_nats=float(np.quantile(kl, 0.99)),
        kl_worst_nats=float(kl.max()),
        worst_position=int(kl.argmax()),
        top1_share=float(agree[clear].mean()) if clear.any() else 1.0,
        near_ties=int((~clear).sum()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChange:
    """What became of the probabilities of the tokens that really come next.

    Attributes:
        delta_p_mean: mean of p_got - p_reference, unitless: above zero where the text became likelier.
        delta_p_rms: root of the mean square of the same.
        perplexity_ratio: of *got* over the reference; exp of the mean difference of log-probabilities.
        perplexity_ratio_se: its standard error; NaN of a single position. See :func:`text_change`.
    """

    delta_p_mean: float
    delta_p_rms: float
    perplexity_ratio: float
    perplexity_ratio_se: float


def text_change(reference: Array, got: Array, targets: Sequence[int]) -> TextChange:
    """Compare what logits ``[T, V]`` say of *targets* ``[T]``, the tokens that come next.

    With l the log-probabilities of the targets, the ratio is exp(mean(l_reference) - mean(l_got)). Its error is that of
    the exponent by the delta method, ratio x sqrt(var(l_reference) + var(l_got) - 2 cov(l_reference, l_got)) / sqrt(T):
    both are of the same text, so that what makes it hard cancels. Source: the perplexity tool of llama.cpp, which calls
    the same figures mean and RMS of delta p, and mean PPL(Q)/PPL(base).

    Raises:
        ValueError: the shapes do not go together, or there is no position.
    """
    if reference.shape != got.shape or len(reference) != len(targets) or not len(targets):
        raise ValueError(f"logits {got.shape} of {len(targets)} targets, but should be {reference.shape}, for each one")
    rows, tokens = np.arange(len(targets)), np.asarray(targets)
    before, after = log_softmax(reference)[rows, tokens], log_softmax(got)[rows, tokens]
    delta_p = np.exp(after) - np.exp(before)
    with np.errstate(over="ignore"):
        ratio = float(np.exp((before - after).mean()))
    return TextChange(
        delta_p_mean=float(delta_p.mean()),
        delta_p_rms=float(np.sqrt((delta_p**2).mean())),
        perplexity_ratio=ratio,
        perplexity_ratio_se=ratio * standard_error(before - after),
    )


def standard_error(values: Array) -> float:
    """Of the mean of *values* ``[n]``, in their unit: sd / sqrt(n), n - 1 degrees of freedom; NaN for one value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


STATE_KINDS = ("att.shift", "att.state", "ffn.shift")
"""What each layer remembers, in the order of a state's arrays."""


def state_nmse(reference: Sequence[Array], got: Sequence[Array]) -> dict[str, float]:
    """NMSE of each kind of state, over all layers together; infinite where a number is NaN or Inf.

    A single vector of a single layer is a small sample of the rounding noise: over the layers it evens out, and a
    fault in one layer still stands out by orders of magnitude.

    Both are the states' arrays in the targets' order: for each layer one array of each kind.
    """
    return {kind: nmse(r, g) if np.isfinite(g).all() else np.inf for kind, (r, g) in _by_kind(reference, got).items()}


def state_max_abs_error(reference: Sequence[Array], got: Sequence[Array]) -> dict[str, float]:
    """Largest absolute error of any number of each kind of state, over the root mean square of that kind.

    Unitless: so that one cap holds for every checkpoint. The mean of squares forgives a single number among ten
    thousand; this does not. Infinite where a number is NaN or Inf, or is not zero where the reference has zeros alone.
    Arguments as of :func:`state_nmse`.
    """
    errors = {}
    for kind, (r, g) in _by_kind(reference, got).items():
        largest = float(np.abs(g - r).max()) if np.isfinite(g).all() else np.inf
        scale = float(np.sqrt((r**2).mean()))
        errors[kind] = largest / scale if scale else 0.0 if largest == 0.0 else np.inf
    return errors


def _by_kind(reference: Sequence[Array], got: Sequence[Array]) -> dict[str, tuple[Array, Array]]:
    """Both states' numbers of each kind, all layers behind one another, in float64."""
    if [a.shape for a in reference] != [a.shape for a in got]:
        raise ValueError(f"states of shapes {[a.shape for a in got]}, but should be {[a.shape for a in reference]}")

    def flat(arrays: Sequence[Array], i: int) -> Array:
        return np.concatenate([array.ravel() for array in arrays[i::3]]).astype(np.float64)

    return {kind: (flat(reference, i), flat(got, i)) for i, kind in enumerate(STATE_KINDS)}
