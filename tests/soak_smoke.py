"""The 20 runs of ``make soak-smoke``: the grid smoke gives the same verdicts each time, and none is a false alarm.

Three runs compile from an empty cache, evenly among the others, which take their bmodels from the run before. Nothing
that the simulator computes is ever kept. Records must equal those of the first run but for times. Writes a table to
the Markdown file given, and exits with 1 where a run differs or fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script: the packages lie beside this folder

import msgspec  # noqa: E402 - the line above makes our packages importable

from harness.manifest import now  # noqa: E402 - same
from harness.paths import cache_folder  # noqa: E402 - same
from reports.schema import Outcome, read  # noqa: E402 - same

if TYPE_CHECKING:
    from reports.schema import RunFile

COLD_LIMIT_S = 6 * 60
WARM_LIMIT_S = 90
TIMES = ("seconds", "compiled", "bmodel_sha256")
"""What may differ: times, and a bmodel's hash, for the compiler writes the date into it; its size may not.

Among the metrics those that begin with ``simulator_`` are times and memory of this machine.
"""


def verdicts(run: RunFile) -> list[dict[str, object]]:
    """All that must be equal from run to run."""
    records = []
    for record in run.records:
        fields = msgspec.to_builtins(record)
        size = (fields.get("compiled") or {}).get("bmodel_bytes")
        metrics = {name: value for name, value in fields["metrics"].items() if not name.startswith("simulator_")}
        fields["metrics"] = metrics
        records.append({name: value for name, value in fields.items() if name not in TIMES} | {"bmodel_bytes": size})
    return sorted(records, key=lambda record: (record["case"], record["suite"], record["check"]))


def smoke(folder: Path, cache: Path, arguments: list[str]) -> tuple[int, float, RunFile]:
    """One run of the suites over the grid smoke: exit status, seconds, records."""
    runs = folder / "runs"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "suites/", "--grid", "smoke", "--runs", str(runs), *arguments],
        cwd=ROOT,
        env=os.environ | {"RWKV_TPU_CACHE": str(cache)},
        stdout=(folder / "pytest.log").open("ab"),
        stderr=subprocess.STDOUT,
        check=False,
    )
    seconds = time.monotonic() - start
    newest = max(runs.glob("*/records.jsonl"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        sys.exit(f"no run was begun, exit status {done.returncode}:\n{(folder / 'pytest.log').read_text()[-2000:]}")
    return done.returncode, seconds, read(newest)


def emptied(cache: Path) -> None:
    """Leave nothing in *cache* but the toolchains, which are not under test."""
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    (cache / "toolchains").symlink_to(cache_folder() / "toolchains")


def main() -> int:
    """Do the runs; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="the Markdown file to write")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--cold", type=int, default=3, help="how many of them start from an empty cache")
    options, rest = parser.parse_known_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S607
    about = (
        f"`make soak-smoke` of commit {commit.stdout.strip()[:12]}, begun {now()}, on {os.cpu_count()} cores, "
        f"{platform.platform()}. BM1684X simulator. A run must pass, and its records must equal those of the first but "
        f"for times; `over` marks one that took longer than {COLD_LIMIT_S} s from an empty cache of bmodels or "
        f"{WARM_LIMIT_S} s from a warm one. Other work on the machine slows the simulator several times.\n"
    )
    lines = [
        "# The grid smoke, again and again\n",
        about,
        "| run | cache | seconds | checks | result |",
        "|---|---|---|---|---|",
    ]
    first: list[dict[str, object]] = []
    bad = 0
    cold_every = -(-options.runs // max(options.cold, 1))
    with tempfile.TemporaryDirectory(prefix="rwkv-tpu-smoke-") as name:
        folder = Path(name)
        for i in range(options.runs):
            cold = i % cold_every == 0
            if cold:
                emptied(folder / "cache")
            status, seconds, run = smoke(folder, folder / "cache", rest)
            ours = verdicts(run)
            first = first or ours
            problems = [f"exit status {status}"] if status else []
            if run.interrupted:
                problems.append("interrupted")
            failed = [record for record in run.records if record.outcome == Outcome.FAILED]
            problems += [f"{record.case} {record.check}: {record.message}" for record in failed]
            if ours != first:
                other = [f"{a['case']} {a['check']}" for a, b in zip(ours, first, strict=False) if a != b]
                problems.append(f"not the first run's records: {', '.join(other[:3]) or 'more or fewer of them'}")
            bad += bool(problems)
            over = " (over)" if seconds > (COLD_LIMIT_S if cold else WARM_LIMIT_S) else ""
            lines.append(
                f"| {i + 1} | {'empty' if cold else 'warm'} | {seconds:.0f}{over} | {len(run.records)} "
                f"| {'; '.join(problems) or 'passed, equal'} |"
            )
            print(lines[-1], flush=True)  # noqa: T201 - this is a command
            options.page.write_text("\n".join(lines) + "\n", encoding="utf-8")
        lines.append(f"\n{options.runs - bad} of {options.runs} runs passed with equal records, false alarms {bad}.")
        print(lines[-1].strip(), flush=True)  # noqa: T201 - same
        options.page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
