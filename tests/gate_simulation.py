"""How often does the gate cry wolf, and does it see 5 %? ``python -m tests.gate_simulation`` prints the table.

A made-up board: ten launches a side in turns, each of 20 samples of 20 metrics, through the whole gate. All metrics of
a launch share an offset (normal, of the given size), each has one of its own (half that size), and a drift, a slow
sine of one period over the measurement with a phase of chance. Samples scatter by 2 %, and some of them take 1.2 to 3
times as long. A launch's value is the median of its samples, as in the records.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.gate.chance import Launches, judge
from harness.gate.compare import gate
from harness.gate.finding import Key, Kind
from harness.gate.rules import load_rules
from tests.gate_runs import DECODE, in_memory, launches

if TYPE_CHECKING:
    from harness.gate.compare import Report

METRICS = 20
SAMPLES = 20
_SCATTER = 0.02
_SLOW_LAUNCH = 1.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """How a made-up board behaves.

    Attributes:
        launch_sd: of what all calls of a launch have in common, as a share.
        drift: height of the slow sine, as a share.
        outliers: share of samples that take 1.2 to 3 times as long.
        slow_launches: share of launches that are 15 % slow in everything.
        launches: a side.
        in_turns: whether BASE and NEW were launched in turns, or one side after the other.
    """

    launch_sd: float = 0.01
    drift: float = 0.01
    outliers: float = 0.05
    slow_launches: float = 0.0
    launches: int = 10
    in_turns: bool = True


def simulate(board: Board, slower: float, rng: np.random.Generator) -> Report:
    """Gate one pair of sides; the first metric of NEW is *slower* times as slow, the others are as they were."""
    order, samples = _samples(board, rng)
    values = np.median(samples, axis=2)
    values[order[1], 0] *= slower
    sides = []
    for which in (0, 1):
        tables = [{f"decode_ms_at_{i}": float(x) for i, x in enumerate(values[launch])} for launch in order[which]]
        sides.append(in_memory(Path("base" if which == 0 else "new"), launches(tables, first=which)))
    return gate(*sides, load_rules())


def _samples(board: Board, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return which launches are BASE's and NEW's, and all samples, [launches, metrics, samples]."""
    n = board.launches
    at = np.arange(2 * n)
    order = at.reshape(n, 2).T if board.in_turns else at.reshape(2, n)
    common = rng.normal(0, board.launch_sd, 2 * n)
    common += board.drift * np.sin(2 * np.pi * at / (2 * n) + rng.uniform(0, 2 * np.pi))
    common += np.where(rng.random(2 * n) < board.slow_launches, np.log(_SLOW_LAUNCH), 0)
    logs = common[:, None, None] + rng.normal(0, board.launch_sd / 2, (2 * n, METRICS, 1))
    logs = logs + rng.normal(0, _SCATTER, (2 * n, METRICS, SAMPLES))
    outlying = rng.random(logs.shape) < board.outliers
    logs = np.where(outlying, logs + np.log(rng.uniform(1.2, 3, logs.shape)), logs)
    return order, 5 * np.exp(logs)


def alarms_of_calls(board: Board, pairs: int, seed: int) -> float:
    """Return the share of alarms if the calls of a single launch a side were taken for launches, which they are not."""
    rng = np.random.default_rng(seed)
    rule = load_rules().rule_for("decode_ms_at_0", DECODE)
    assert rule is not None
    cried = 0
    for _ in range(pairs):
        order, samples = _samples(board, rng)
        base, new = samples[order[0][0]], samples[order[1][0]]
        key = Key(DECODE, "throughput", "decode")
        tests = [Launches(key, str(i), rule, list(base[i]), list(new[i])) for i in range(METRICS)]
        cried += any(one.kind is Kind.REGRESSION for one in judge(tests, [], 0.01))
    return cried / pairs


def alarms(board: Board, pairs: int, seed: int) -> float:
    """Return the share of *pairs* of sides in which nothing changed and the gate still failed."""
    rng = np.random.default_rng(seed)
    return sum(simulate(board, 1.0, rng).exit_code != 0 for _ in range(pairs)) / pairs


def found(board: Board, pairs: int, seed: int, slower: float = 1.05) -> float:
    """Return the share of *pairs* in which one metric is *slower* times as slow and the gate says so of this one."""
    rng = np.random.default_rng(seed)
    seen = 0
    for _ in range(pairs):
        regressions = [one for one in simulate(board, slower, rng).findings if one.kind is Kind.REGRESSION]
        seen += any(one.metric == "decode_ms_at_0" for one in regressions)
    return seen / pairs


def main(pairs: int) -> None:
    """Print the table of docs/gate.md."""
    boards = [
        Board(launch_sd=0.005, outliers=0.01),
        Board(launch_sd=0.005),
        Board(launch_sd=0.01, outliers=0.01),
        Board(launch_sd=0.01),
        Board(launch_sd=0.015),
        Board(launch_sd=0.02),
        Board(launch_sd=0.02, launches=20),
        Board(slow_launches=0.02),
        Board(slow_launches=0.02, launches=14),
        Board(in_turns=False),
    ]
    print(f"| launches | launch sd | drift | outliers | slow launches | in turns | alarms, of {pairs} | 5 % found |")  # noqa: T201 - it prints
    print("|---|---|---|---|---|---|---|---|")  # noqa: T201 - it prints
    for board in boards:
        share = (board.launch_sd, board.drift, board.outliers, board.slow_launches)
        row = [str(board.launches), *(f"{x:.1%}" for x in share), "yes" if board.in_turns else "no"]
        row += [f"{alarms(board, pairs, 1):.1%}", f"{found(board, pairs, 2):.1%}"]
        print(f"| {' | '.join(row)} |", flush=True)  # noqa: T201 - it prints
    share = alarms_of_calls(Board(), pairs, 3)
    print(f"One launch a side, its calls taken for launches: {share:.1%} alarms.")  # noqa: T201 - it prints


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
