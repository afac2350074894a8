"""Made-up runs for the tests of the gate, in memory and on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from harness.gate.sides import Side, launch_of
from reports.schema import VERSION, End, Outcome, Reading, Record, Run, RunFile, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

DECODE, PREFILL = "decode-F16-chunk", "prefill_16-F16-chunk"
METRICS = {"kl_mean_nats": 7e-6, "kl_worst_nats": 2e-5, "top1_share": 1.0, "state_nmse": 1e-6, "positions": 64.0}
PREDICTED = {
    "predicted_ms": 0.0549,
    "predicted_cycles": 54900,
    "tiu_instructions": 400,
    "gdma_instructions": 700,
    "ddr_read_bytes": 1_500_000,
    "ddr_write_bytes": 90_000,
}
COMPILED = {"compile_seconds": 8.25, "compile_peak_bytes": 400_000_000, "bmodel_bytes": 6_848_512}
TIMES = {"decode_ms_at_0": 5.0, "load_ms": 900.0, "device_memory_bytes": 100_000_000.0}


def a_run(**changes: Any) -> Run:
    """Return a first line; tables in *changes* are merged into the usual ones."""
    fields: dict[str, Any] = {
        "schema": VERSION,
        "id": "r0",
        "started": "2026-01-01T00:00:00+0000",
        "command": ("pytest", "suites/"),
        "target": "cmodel",
        "harness": {"version": "0.1.0", "commit": "c0", "changed": "false"},
        "toolchain": {"version": "1.30.2", "commit": "v1.30.2-g0", "wheel_sha256": "w0", "identity": "i0"},
        "checkpoint": {"name": "tiny", "sha256": "s0", "n_layer": 2},
        "grid": {"name": "smoke", "sha256": "g0"},
        "port": {},
        "limits_sha256": "l0",
        "options": {"device": "cmodel", "grid": "smoke"},
        "data": {"vocabulary": "v0"},
        "machine": {"processor": "p0", "cores": 2},
        "packages": {"numpy": "2", "rwkv-tpu-harness": "0.1.0"},
    }
    for name, value in changes.items():
        fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
    return Run(**fields)


def a_record(case: str = DECODE, check: str = "from_zero_state", **changes: Any) -> Record:
    """Return a record of a check that passed, unless *changes* say otherwise; metrics are merged into the usual ones.

    A metric that is to be absent is given as the text ``absent``.
    """
    fields: dict[str, Any] = {
        "case": case,
        "suite": "parity",
        "check": check,
        "outcome": Outcome.PASSED,
        "seconds": 1.5,
        "metrics": METRICS,
        "predicted": PREDICTED,
        "compiled": COMPILED,
        "kl_by_position": {},
        "bmodel_sha256": f"b-{case}",
        "runtime": {"kind": "cmodel", "libbmlib": "1"},
        "target": "cmodel",
    }
    for name, value in changes.items():
        fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
    for name in ("metrics", "predicted", "compiled"):
        fields[name] = {key: value for key, value in fields[name].items() if value != "absent"}
    return Record(**fields)


def failed(case: str = DECODE, stage: Stage = Stage.NUMERICS, **changes: Any) -> Record:
    """Return a record of a check that failed."""
    return a_record(case, outcome=Outcome.FAILED, stage=stage, message="NaN or Inf among the logits", **changes)


@dataclass(frozen=True)
class MadeRun:
    """A run that is not on disk yet.

    Attributes:
        complete: whether the last line is written.
        end: changes of the last line.
        mangle: what is done to the file's bytes.
    """

    records: tuple[Record, ...]
    run: dict[str, Any] = field(default_factory=dict)
    complete: bool = True
    end: dict[str, Any] = field(default_factory=dict)
    mangle: Callable[[bytes], bytes] = bytes

    def write(self, folder: Path) -> None:
        """Write it into *folder*."""
        file = self.file()
        lines = [file.run, *file.records, *([file.end] if file.end else [])]
        folder.mkdir(parents=True)
        text = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        (folder / "records.jsonl").write_bytes(self.mangle(text))

    def file(self) -> RunFile:
        """Return it as if it were read."""
        outcomes: dict[str, int] = {}
        for record in self.records:
            outcomes[record.outcome.value] = outcomes.get(record.outcome.value, 0) + 1
        bad = {"failed", "infra"} & set(outcomes)
        fields: dict[str, Any] = {"records": len(self.records), "outcomes": outcomes, "exit_status": int(bool(bad))}
        end = End(**({"finished": "2026-01-01T01:00:00+0000"} | fields | self.end))
        return RunFile(run=a_run(**self.run), records=self.records, end=end if self.complete else None)


def in_memory(path: Path, runs: Iterable[MadeRun]) -> Side:
    """Return a side of runs as if it were read from disk."""
    launches, faults = [], []
    for index, made in enumerate(runs):
        launch, found = launch_of(path / str(index) / "records.jsonl", made.file())
        launches.append(launch)
        faults += found
    return Side(path=path, launches=tuple(launches), faults=tuple(faults))


def launches(times: Iterable[dict[str, float]], *, first: int = 0, case: str = DECODE, **run: Any) -> list[MadeRun]:
    """Return runs of a board, one for each table of times; every second number of the clock is this side's."""
    made = []
    for index, values in enumerate(times):
        at = first + 2 * index
        place = {"target": "0", "id": f"r{at}", "started": f"2026-01-01T{at // 60:02}:{at % 60:02}:00+0000"}
        health = (Reading(name="driver", value="0.5.1"), Reading(name="chip_temperature", value=40.0 + index))
        record = a_record(case, "decode", suite="throughput", metrics=dict.fromkeys(METRICS, "absent") | values)
        made.append(MadeRun((record,), {"health": health, **place, **run}))
    return made
