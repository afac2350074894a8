"""A run as a table in the terminal."""

from __future__ import annotations

import io
import textwrap
from collections import defaultdict
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from reports.schema import Outcome

if TYPE_CHECKING:
    from reports.schema import Record, RunFile

_WORST_IS_LOW = {"top1_share"}
_LONGEST = 30  # characters of a case's id in a line: the figures need the rest
_OPS = "ops"
"""The suite of blocks compiled alone: dozens of short cases, of which a reader wants those that failed."""


def summary(run: RunFile, width: int) -> str:
    """One row per case: checks, the worst metrics over them (KL in nats), the compiler's predicted time of a call.

    Blocks compiled alone share a row, but for those that failed. Checks without a verdict, because of the board or the
    way to it, are no failures and have a column of their own.
    """
    table = Table(box=box.SIMPLE)
    table.add_column("case", no_wrap=True)
    any_infra = any(record.outcome is Outcome.INFRA for record in run.records)
    infra_heading = ("no verdict",) if any_infra else ()
    for heading in ("checks", "failed", *infra_heading, "KL mean", "KL worst", "top-1", "state NMSE", "predicted ms"):
        table.add_column(heading, justify="right")
    by_case: dict[str, list[Record]] = defaultdict(list)
    for record in run.records:
        by_case[_row(record)].append(record)
    for case, records in by_case.items():
        failed = sum(record.outcome is Outcome.FAILED for record in records)
        infra = sum(record.outcome is Outcome.INFRA for record in records)
        predicted = next((r.predicted["predicted_ms"] for r in records if r.predicted), None)
        table.add_row(
            textwrap.fill(case, _LONGEST, break_on_hyphens=False),
            str(len(records)),
            str(failed),
            *((str(infra),) if any_infra else ()),
            *(_worst(records, name) for name in ("kl_mean_nats", "kl_worst_nats", "top1_share", "state_nmse")),
            "" if predicted is None else f"{predicted:.4f}",
            style="red" if failed or infra else None,
        )
    buffer = io.StringIO()
    Console(file=buffer, width=max(width, 100)).print(table)
    return buffer.getvalue()


def _row(record: Record) -> str:
    if record.suite == _OPS and record.outcome is not Outcome.FAILED:
        return "(blocks alone)"
    return record.case or "(no graph)"


def _worst(records: list[Record], name: str) -> str:
    values = [record.metrics[name] for record in records if name in record.metrics]
    if not values:
        return ""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return "not finite"
    return f"{min(numbers):.4f}" if name in _WORST_IS_LOW else f"{max(numbers):.1e}"
