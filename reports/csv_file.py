"""Records as one tidy CSV: a row per record, a column per metric, nothing rounded."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from reports.schema import RunFile


def write_csv(run: RunFile, path: Path) -> None:
    """Write a row per record, behind columns that tell the run; absent metrics are empty."""
    metrics = sorted({name for record in run.records for name in record.metrics})
    predicted = sorted({name for record in run.records for name in record.predicted})
    fixed = ["run", "target", "toolchain", "checkpoint", "case", "suite", "check", "outcome", "stage", "message"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*fixed, "seconds", *metrics, *predicted, "bmodel_sha256"])
        writer.writeheader()
        for record in run.records:
            writer.writerow(
                {
                    "run": run.run.id,
                    "target": run.run.target,
                    "toolchain": run.run.toolchain["version"],
                    "checkpoint": run.run.checkpoint["name"],
                    "case": record.case,
                    "suite": record.suite,
                    "check": record.check,
                    "outcome": record.outcome.value,
                    "stage": record.stage.value if record.stage else "",
                    "message": record.message,
                    "seconds": record.seconds,
                    **record.metrics,
                    **record.predicted,
                    "bmodel_sha256": record.bmodel_sha256,
                }
            )
