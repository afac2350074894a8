"""Made-up runs for the tests of reports, and a browser to look at their pages."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from reports.schema import Expected, Outcome, Reading, Record, Stage
from tests.gate_runs import MadeRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from playwright.sync_api import Browser

# Speed and distance of a precision beside F16, as such figures use to be.
PRECISIONS = {"F16": (1.0, 1.0), "BF16": (1.0, 40.0), "W8F16": (0.7, 120.0), "W4F16": (0.45, 9000.0)}
GRAPHS = [("decode", 1), *((kind, T) for T in (16, 32, 64) for kind in ("prefill", "prefill_all"))]
BOARD_READINGS = (Reading(name="driver", value="0.5.1"), Reading(name="chip_temperature", value=41.0, unit="C"))


def release_run(
    *,
    board: bool = False,
    seed: int = 0,
    size: str = "rwkv7-g1-0.1b",
    scale: float = 1.0,
    every_options: tuple[str, ...] = ("", "+opt1"),
    **run: Any,
) -> MadeRun:
    """Return a run like one of a release: four precisions, seven graphs, with and without an option, some of it bad."""
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    records = []
    for precision, (cost, distance) in PRECISIONS.items():
        for options in every_options:
            for kind, T in GRAPHS:
                graph = kind if kind == "decode" else f"{kind}_{T}"
                call_ms = 5.3 * scale * cost * (1 + T / 60) * chance.uniform(0.97, 1.05) * (1.04 if options else 1)
                case = f"{graph}-{precision}-chunk{options}"
                records += list(_checks(case, kind, T, call_ms, 7e-6 * distance * chance.uniform(0.7, 1.4), board))
    records[9] = _changed(
        records[9],
        outcome=Outcome.FAILED,
        stage=Stage.NUMERICS,
        message="AssertionError: kl_worst_nats=3.10e-03 at position 41, but should be <= 1.0e-03\nnotes follow",
    )
    records[60] = _changed(
        records[60],
        outcome=Outcome.EXPECTED_FAILURE,
        stage=Stage.CODEGEN,
        message="CompileError: model_deploy exited with 134",
        expected=Expected(reason="the allocator aborts on chunks of 64 with opt1", since="2025-10-02"),
    )
    records[71] = _changed(records[71], outcome=Outcome.SKIPPED, message="no task is known for this checkpoint")
    records.append(Record(case="", suite="tokenizer", check="round_trip", outcome=Outcome.PASSED, seconds=0.01))
    fields: dict[str, Any] = {
        "checkpoint": {"name": size, "sha256": "5f" * 32, "n_layer": 12, "n_embd": 768},
        "command": (".venv/bin/pytest", "suites/", "--grid", "release", "-k", "parity"),
        "target": "0" if board else "cmodel",
        "health": BOARD_READINGS if board else (),
    }
    return MadeRun(tuple(records), fields | run)


def _changed(record: Record, **changes: Any) -> Record:
    return Record(**({name: getattr(record, name) for name in Record.__struct_fields__} | changes))


def _checks(case: str, kind: str, T: int, call_ms: float, kl: float, board: bool) -> Iterator[Record]:  # noqa: FBT001
    common: dict[str, Any] = {
        "case": case,
        "outcome": Outcome.PASSED,
        "seconds": 12.5,
        "target": "0" if board else "cmodel",
        "bmodel_sha256": "ab" * 32,
        "runtime": {"kind": "board" if board else "cmodel", "libbmrt": "1.0.0"},
        "predicted": {
            "predicted_ms": call_ms,
            "predicted_cycles": int(call_ms * 1e6),
            "tiu_instructions": 400 + T,
            "gdma_instructions": 700 + T,
            "ddr_read_bytes": 251_000_000 + T * 1000,
            "ddr_write_bytes": 900_000 + T * 700,
        },
        "compiled": {"compile_seconds": 61.25, "compile_peak_bytes": 8_123_456_789, "bmodel_bytes": 252_000_123},
    }
    for factor, check, tokens in ((1.0, "from_zero_state", 64), (1.3, "from_random_state", max(32, T))):
        positions = range(T - 1, tokens, T) if kind == "prefill" else range(tokens)
        metrics: dict[str, float | None] = {
            "kl_worst_nats": kl * 4.2 * factor,
            "total_kl_mean_nats": kl * factor,
            "top1_share": 1.0,
            "positions": float(len(positions)),
        }
        metrics |= {"near_ties": 5.0, "state_nmse": kl / 5}
        if kind != "prefill":
            metrics["kl_mean_nats"] = kl * factor
        curve = kl_curve(positions, kl * 4.2 * factor, random.Random(f"{case} {check}"))  # noqa: S311 - nothing secret
        yield Record(suite="parity", check=check, metrics=metrics, kl_by_position=curve, **common)
    prefix = "" if board else "simulator_wall_"
    times = {"decode_ms_at_0": call_ms * 1.3} if kind == "decode" else {"prefill_ms": call_ms * 1.25, "ttft_ms": 90.0}
    slow = 1.0 if board else 900.0
    metrics = {f"{prefix}{name}": value * slow for name, value in times.items()}
    if board:
        metrics["device_memory_bytes"] = 300_000_256.0
    yield Record(suite="throughput", check=kind, metrics=metrics, **common)


def kl_curve(positions: Sequence[int], worst: float, chance: random.Random) -> dict[int, float | None]:
    """Return KL divergences by position, as scattered as they use to be, of which the highest is *worst*."""
    drawn = [chance.lognormvariate(position / 64, 1.0) for position in positions]
    return {position: float(f"{worst * kl / max(drawn):.4g}") for position, kl in zip(positions, drawn, strict=True)}


def many_cases(cases: int) -> MadeRun:
    """Return a run of *cases* cases, each with one record of 20 metrics and 64 positions."""
    chance = random.Random(1)  # noqa: S311 - nothing secret
    names = ["kl_mean_nats", "kl_worst_nats", "top1_share", "state_nmse", "positions", "near_ties", "decode_ms_at_0"]
    names += [f"decode_p95_ms_at_{depth}" for depth in (0, 512, 2048, 8192)]
    names += ["device_memory_bytes", "host_memory_bytes", "load_ms"]
    predicted = ["predicted_ms", "predicted_cycles", "tiu_instructions", "gdma_instructions"]
    predicted += ["ddr_read_bytes", "ddr_write_bytes"]
    assert len(names) + len(predicted) == 20
    precisions = list(PRECISIONS)
    records = [
        Record(
            case=f"{'prefill' if n % 2 else 'prefill_all'}_{2 + n // 8}-{precisions[n // 2 % 4]}-chunk",
            suite="parity",
            check="from_zero_state",
            outcome=Outcome.FAILED if n % 97 == 0 else Outcome.PASSED,
            message=f"AssertionError: case {n} is wrong" if n % 97 == 0 else "",
            seconds=chance.random(),
            metrics={name: chance.random() for name in names},
            kl_by_position=kl_curve(range(64), chance.random(), chance),
            predicted={name: chance.random() * 1e6 for name in predicted},
        )
        for n in range(cases)
    ]
    return MadeRun(tuple(records), {"target": "0"})


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Open a headless Chromium; without one tests skip, and in CI they fail."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - takes long to import

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        message = "no Chromium on this machine: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
