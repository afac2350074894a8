"""Writes a run's records, one line at a time, so that a killed run keeps every line before."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from harness.manifest import now
from reports import schema

if TYPE_CHECKING:
    from pathlib import Path


class RunWriter:
    """The records file of one run, ``records.jsonl`` in the run's folder."""

    def __init__(self, folder: Path, run: schema.Run) -> None:
        """Make the folder and write the first line."""
        folder.mkdir(parents=True, exist_ok=False)
        self.folder = folder
        self.path = folder / "records.jsonl"
        self._outcomes: Counter[str] = Counter()
        self._write(run)

    def add(self, record: schema.Record) -> None:
        """Append a record."""
        self._write(record)
        self._outcomes[record.outcome.value] += 1

    def end(self, exit_status: int, health: tuple[schema.Reading, ...] = (), unmatched: tuple[str, ...] = ()) -> None:
        """Append the last line: the run is complete.

        *health* is what the board said after it, *unmatched* the expectations of failures that match nothing.
        """
        counts = dict(self._outcomes)
        records = sum(counts.values())
        self._write(
            schema.End(
                finished=now(),
                records=records,
                outcomes=counts,
                exit_status=exit_status,
                health=health,
                unmatched=unmatched,
            )
        )

    def _write(self, line: schema.Line) -> None:
        # Opened for each line: a line a second needs no more, and nothing is lost in a buffer when the process dies.
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
