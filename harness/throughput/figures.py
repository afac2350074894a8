"""What is told of the samples: medians, with the slow end beside them. Milliseconds and tokens a second."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harness.throughput.sample import What

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.throughput.sample import Sample


class Spread(NamedTuple):
    """Where values lie: their number, median, and the quantiles that leave 5 % below and above."""

    n: int
    median: float
    p5: float
    p95: float


def spread(values: Iterable[float]) -> Spread:
    """Sum *values* up; between two of them a quantile is interpolated.

    Raises:
        ValueError: there are none.
    """
    array = np.fromiter(values, float)
    if not len(array):
        raise ValueError("expected at least one value")
    p5, median, p95 = np.quantile(array, (0.05, 0.5, 0.95))
    return Spread(len(array), float(median), float(p5), float(p95))


def chunk_figures(samples: Sequence[Sample]) -> dict[str, float]:
    """Prefill: tokens of a chunk over the median time of a call."""
    times = _times("prefill", "", samples)
    return {"prefill_tokens_per_s": 1000 * samples[0].tokens / times["prefill_ms"], **times}


def prompt_figures(samples: Sequence[Sample]) -> dict[str, float]:
    """Time to first token and time per output token after it: a mean over each prompt, the median of those."""
    first = [sample for sample in samples if sample.what is What.PROMPT]
    output = [_mean_s(repeat) for repeat in _repeats(s for s in samples if s.what is What.OUTPUT)]
    return {
        **_times("ttft", "", first),
        "tpot_ms": 1000 * spread(output).median,
    }


def window_figures(samples: Sequence[Sample], depth: int) -> dict[str, float]:
    """Decode: steps over the sum of their times, the median over windows; then the single steps."""
    rates = [1 / _mean_s(repeat) for repeat in _repeats(samples)]
    at = f"_at_{depth}"
    return {f"decode_tokens_per_s{at}": spread(rates).median, **_times("decode", at, samples)}


def warm_up_ms(first: Sample, later: Iterable[Sample]) -> float:
    """How much longer the first call of a net took than the median of *later* ones; below zero by chance alone."""
    return 1000 * (first.end_to_end_s - spread(sample.end_to_end_s for sample in later).median)


def _times(name: str, at: str, samples: Sequence[Sample]) -> dict[str, float]:
    """Median and slow end of the calls, from end to end; in the worker and on the chip as far as these are known."""
    calls = spread(sample.end_to_end_s for sample in samples)
    figures = {f"{name}_ms{at}": 1000 * calls.median, f"{name}_p95_ms{at}": 1000 * calls.p95}
    launches = [sample.launch_s for sample in samples if sample.launch_s is not None]
    if launches:
        figures[f"{name}_launch_ms{at}"] = 1000 * spread(launches).median
    on_chip = [sample.device_s for sample in samples if sample.device_s is not None]
    if on_chip:
        figures[f"{name}_device_ms{at}"] = 1000 * spread(on_chip).median
    return figures


def _repeats(samples: Iterable[Sample]) -> list[list[Sample]]:
    return [list(group) for _, group in groupby(samples, lambda sample: sample.repeat)]


def _mean_s(samples: Sequence[Sample]) -> float:
    return sum(sample.end_to_end_s for sample in samples) / len(samples)
