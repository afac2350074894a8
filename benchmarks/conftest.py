"""Ours against the usual implementation: same process, same two threads, both warm, turn and turn about."""

import itertools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

THREADS = 2
LINES = pytest.StashKey[list[str]]()


@dataclass(frozen=True)
class Ratio:
    """How long each side took: medians over the rounds, in seconds."""

    ours_s: float
    theirs_s: float

    @property
    def value(self) -> float:
        """Time of theirs over time of ours: above 1, ours is faster."""
        return self.theirs_s / self.ours_s

    def __str__(self) -> str:
        """Show both times and the ratio."""
        return f"ours {self.ours_s:.4g} s, theirs {self.theirs_s:.4g} s, ratio {self.value:.3f}"


@pytest.fixture
def compare(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Callable[..., Ratio]:
    """Return ``compare(ours, theirs, rounds=5)``, which times two callables without arguments.

    It can be called once in a test::

        ratio = compare(lambda: ours.encode(text), lambda: theirs.encode(text))
        assert ratio.value >= 1, ratio

    Each is called once to warm up, then *rounds* times, in the order ours, theirs, theirs, ours, ours, theirs, ...: a
    machine that grows slower or faster does so for both. Both run in this process with the same threads of torch.

    One call should take a tenth of a second or more; where it is shorter, put the same loop into both. What must not
    count, such as loading a model, stands before the callables.

    Ours is what pytest-benchmark times, shows and saves; theirs and the ratio are in its ``extra_info``. At the end of
    the run each comparison has its line ``ours ... s, theirs ... s, ratio ...``.
    """

    def run(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 5) -> Ratio:
        if benchmark.disabled:
            pytest.skip("benchmarks are disabled: without timing, two sides cannot be compared")
        theirs_s: list[float] = []
        # Theirs has a turn before and one after each round of ours, and takes them alternately.
        takes = itertools.cycle((True, False, False, True))

        def turn() -> None:
            if next(takes):
                start = time.perf_counter()
                theirs()
                theirs_s.append(time.perf_counter() - start)

        benchmark.pedantic(ours, setup=turn, teardown=turn, rounds=rounds, warmup_rounds=1)
        ratio = Ratio(benchmark.stats.stats.median, statistics.median(theirs_s[1 : 1 + rounds]))
        benchmark.extra_info.update(theirs_s=ratio.theirs_s, ratio=ratio.value, threads=THREADS)
        pytestconfig.stash.setdefault(LINES, []).append(f"{benchmark.name}: {ratio}")
        return ratio

    return run


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    """Give torch the same threads for both sides."""
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public texts beside the repository; without it benchmarks skip, and in CI they fail."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        message = f"no data folder {folder}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show each comparison in a line."""
    if lines := config.stash.get(LINES, []):
        terminalreporter.section(f"ours against theirs, {THREADS} threads, medians")
        for line in lines:
            terminalreporter.write_line(line)
