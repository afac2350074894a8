"""A gate of two runs of 10,000 cases with 20 metrics each takes under 3 seconds, reading and printing included."""

import io
from contextlib import redirect_stdout

import pytest
import typer

from harness.commands.gate import gate
from tests.gate_runs import METRICS, PREDICTED, MadeRun, a_record

CASES = 10_000
LIMIT_S = 3.0
# With METRICS and PREDICTED, 20 metrics.
MORE = {
    "canary_step_ms": 0.1,
    "exact_matches": 20.0,
    "near_ties": 1.0,
    "device_memory_bytes": 5e8,
    "prompt_tokens": 513.0,
    "bmodel_bytes": 3e8,
    **{f"decode_p95_ms_at_{depth}": 5.0 + depth for depth in (0, 512, 2048)},
}


@pytest.fixture(params=["all the same", "every second case is worse"])
def sides(request, tmp_path):
    """Two runs on disk; of the second one, none or half of the cases have one byte more."""
    more = int(request.param != "all the same")
    assert len(METRICS) + len(PREDICTED) + len(MORE) == 20
    for name, extra in (("base", 0), ("new", more)):
        records = tuple(
            a_record(
                f"prefill_{n}-F16-chunk",
                metrics=MORE | {"state_nmse": 1e-6 + n * 1e-12},
                predicted={"ddr_read_bytes": 1_500_000 + n + extra * (n % 2)},
            )
            for n in range(CASES)
        )
        MadeRun(records).write(tmp_path / name)
    return tmp_path / "base", tmp_path / "new"


def test_two_large_runs(benchmark, sides):
    """As the command does it; the time of the interpreter's start is not in it."""

    def run() -> None:
        with redirect_stdout(io.StringIO()), pytest.raises(typer.Exit):
            gate(*sides)

    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    if not benchmark.disabled:
        assert benchmark.stats.stats.max < LIMIT_S
