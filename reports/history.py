"""An index of runs in SQLite: what each was of, what became of its cases, and their worst figures.

It outlives the runs: a folder may be deleted, its figures stay. The records themselves are not in it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Self

import msgspec

from reports.schema import Outcome, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from reports.schema import Record, RunFile

VERSION = 1
"""Of the database, in its ``user_version``. Raise it with any change of the tables."""

RECORDS = "records.jsonl"

_WAIT_S = 60  # for another process that writes: a run is added in well under a second
_APPLICATION = 0x52574B37  # tells our databases from others'
_TABLES = """
CREATE TABLE run (
    id TEXT PRIMARY KEY,
    folder TEXT NOT NULL,          -- relative to the database's where it is below it
    sha256 TEXT NOT NULL,          -- of the records file
    bytes INTEGER NOT NULL,        -- of the records file
    started TEXT NOT NULL,
    finished TEXT,                 -- NULL: interrupted
    exit_status INTEGER,
    target TEXT NOT NULL,
    origin TEXT NOT NULL           -- JSON: entries of the manifest
) STRICT;
CREATE TABLE checked_case (
    run TEXT NOT NULL REFERENCES run (id),
    name TEXT NOT NULL,            -- the case's id
    outcomes TEXT NOT NULL,        -- JSON: number of each
    bmodel_sha256 TEXT NOT NULL,
    PRIMARY KEY (run, name)
) STRICT;
CREATE TABLE figure (
    run TEXT NOT NULL,
    checked_case TEXT NOT NULL,
    name TEXT NOT NULL,
    value REAL,                    -- NULL: NaN or infinite
    PRIMARY KEY (run, checked_case, name),
    FOREIGN KEY (run, checked_case) REFERENCES checked_case (run, name)
) STRICT, WITHOUT ROWID;
"""

_HIGHER_IS_BETTER = ("top1_share", "lambada_accuracy", "exact_matches", "tokens_per_s", "tpu_clock_lowest_mhz")


class HistoryError(RuntimeError):
    """A database that cannot be used; says which and what to do."""


class Added(Enum):
    """What adding a run came to."""

    NEW = "added"
    KNOWN = "known already"
    WENT_ON = "went on since it was added as interrupted: taken over"
    MOVED = "known already, now in another folder"
    REPLACED = "changed since it was added: replaced"
    CHANGED = "changed since it was added: left as it was, --replace takes it over"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSummary:
    """What a run found out of one case.

    Attributes:
        name: the case's id; empty for the checks without a graph.
        outcomes: number of each outcome.
        figures: the worst of each metric, prediction and figure of the compile over all checks; None is NaN or
            infinite, which is worse than any number.
    """

    name: str
    outcomes: dict[str, int]
    bmodel_sha256: str
    figures: dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedRun:
    """A run as it stands in the index.

    Attributes:
        folder: where it was when it was added; it may be gone.
        finished: None where it was interrupted.
        origin: entries of the manifest that tell runs apart, such as ``toolchain.version``.
        cases: by their names.
    """

    id: str
    folder: Path
    started: str
    finished: str | None
    exit_status: int | None
    target: str
    origin: dict[str, str]
    cases: dict[str, CaseSummary]

    @property
    def interrupted(self) -> bool:
        """Whether the run ended before its end, or had not come to it when it was added."""
        return self.finished is None


class History:
    """The index. Any number of processes may use one file; a writer waits for the others."""

    def __init__(self, path: Path) -> None:
        """Open the database, or make one.

        Raises:
            HistoryError: the file is none of ours, of another version, or cannot be opened.
        """
        self.path = path.resolve()
        try:
            self._connection = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)
        except sqlite3.Error as error:
            raise HistoryError(f"{path}: cannot be opened: {error}") from error
        try:
            self._set_up()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise HistoryError(
                f"{path}: should be a history of runs, but: {error}; name another file, or move it away"
            ) from error
        except HistoryError:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        """Use it; it is open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._connection.close()

    def add(self, run: Path, *, replace: bool = False) -> Added:
        """Add a run, by its folder or its records file; what stands there already is not added twice.

        Args:
            run: the folder, or its ``records.jsonl``.
            replace: take a run over whose records are not those that were added.

        Raises:
            RecordsError: the records cannot be trusted; nothing is added.
            OSError: they cannot be read.
        """
        path = run if run.is_file() else run / RECORDS
        text = path.read_bytes()
        file = parse(text, path)
        folder = self._kept(path.parent)
        with self._writing():
            row = self._connection.execute(
                "SELECT folder, sha256, bytes, finished FROM run WHERE id = ?", (file.run.id,)
            ).fetchone()
            if row is None:
                self._insert(file, text, folder)
                return Added.NEW
            before, sha256, size, finished = row
            if hashlib.sha256(text).hexdigest() == sha256:
                if before == folder or (self.path.parent / before / RECORDS).is_file():
                    return Added.KNOWN
                self._connection.execute("UPDATE run SET folder = ? WHERE id = ?", (folder, file.run.id))
                return Added.MOVED
            went_on = finished is None and hashlib.sha256(text[:size]).hexdigest() == sha256
            if not went_on and not replace:
                return Added.CHANGED
            self._remove(file.run.id)
            self._insert(file, text, folder)
            return Added.WENT_ON if went_on else Added.REPLACED

    def runs(self) -> tuple[IndexedRun, ...]:
        """All runs, by the time of their start."""
        with self._reading():
            runs = self._connection.execute(
                "SELECT id, folder, started, finished, exit_status, target, origin FROM run"
            ).fetchall()
            cases = self._connection.execute("SELECT run, name, outcomes, bmodel_sha256 FROM checked_case").fetchall()
            figures = self._connection.execute("SELECT run, checked_case, name, value FROM figure").fetchall()
        by_case: dict[tuple[str, str], dict[str, float | None]] = {}
        for run, case, name, value in figures:
            by_case.setdefault((run, case), {})[name] = value
        by_run: dict[str, dict[str, CaseSummary]] = {}
        for run, name, outcomes, bmodel in cases:
            by_run.setdefault(run, {})[name] = CaseSummary(
                name=name,
                outcomes=msgspec.json.decode(outcomes, type=dict[str, int]),
                bmodel_sha256=bmodel,
                figures=by_case.get((run, name), {}),
            )
        found = [
            IndexedRun(
                id=id_,
                folder=self.path.parent / folder,
                started=started,
                finished=finished,
                exit_status=exit_status,
                target=target,
                origin=msgspec.json.decode(origin, type=dict[str, str]),
                cases=by_run.get(id_, {}),
            )
            for id_, folder, started, finished, exit_status, target, origin in runs
        ]
        return tuple(sorted(found, key=lambda run: (_instant(run.started), run.id)))

    def _set_up(self) -> None:
        self._connection.execute("PRAGMA foreign_keys = ON")
        with self._writing():
            version, application = (
                self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
            )
            empty = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
            if empty and not version:
                for statement in _TABLES.split(";\n"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {VERSION}")
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            elif application != _APPLICATION:
                raise HistoryError(f"{self.path}: is another program's database; name another file")
            elif version != VERSION:
                raise HistoryError(
                    f"{self.path}: is of version {version}, but this release uses {VERSION}; move it away and add the "
                    "runs again"
                )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """All or nothing, and one process at a time: a lock for writing from the first look on."""
        yield from self._transaction("BEGIN IMMEDIATE")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """See one state of the database, whoever writes meanwhile."""
        yield from self._transaction("BEGIN")

    def _transaction(self, begin: str) -> Iterator[None]:
        self._connection.execute(begin)
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _insert(self, file: RunFile, text: bytes, folder: str) -> None:
        run, end = file.run, file.end
        values = (
            run.id,
            folder,
            hashlib.sha256(text).hexdigest(),
            len(text),
            run.started,
            None if end is None else end.finished,
            None if end is None else end.exit_status,
            run.target,
            msgspec.json.encode(_origin(file)).decode(),
        )
        self._connection.execute("INSERT INTO run VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        cases = summarise(file.records)
        self._connection.executemany(
            "INSERT INTO checked_case VALUES (?, ?, ?, ?)",
            [(run.id, case.name, msgspec.json.encode(case.outcomes).decode(), case.bmodel_sha256) for case in cases],
        )
        self._connection.executemany(
            "INSERT INTO figure VALUES (?, ?, ?, ?)",
            [(run.id, case.name, name, value) for case in cases for name, value in case.figures.items()],
        )

    def _remove(self, run: str) -> None:
        self._connection.execute("DELETE FROM figure WHERE run = ?", (run,))
        self._connection.execute("DELETE FROM checked_case WHERE run = ?", (run,))
        self._connection.execute("DELETE FROM run WHERE id = ?", (run,))

    def _kept(self, folder: Path) -> str:
        """Name a folder so that database and runs can be moved together."""
        folder = folder.resolve()
        home = self.path.parent
        return str(folder.relative_to(home) if folder.is_relative_to(home) else folder)


def summarise(records: Iterable[Record]) -> tuple[CaseSummary, ...]:
    """Put the records of each case together."""
    by_case: dict[str, list[Record]] = {}
    for record in records:
        by_case.setdefault(record.case, []).append(record)
    return tuple(_summary(name, found) for name, found in by_case.items())


def worst_outcome(outcomes: dict[str, int]) -> str:
    """Return the name of the worst outcome; empty where there is none."""
    order = (Outcome.INFRA, Outcome.FAILED, Outcome.EXPECTED_FAILURE, Outcome.PASSED, Outcome.SKIPPED)
    return next((outcome.value for outcome in order if outcomes.get(outcome.value)), "")


def _summary(name: str, records: list[Record]) -> CaseSummary:
    outcomes: dict[str, int] = {}
    figures: dict[str, float | None] = {}
    for record in records:
        outcomes[record.outcome.value] = outcomes.get(record.outcome.value, 0) + 1
        for figure, value in {**record.metrics, **record.predicted, **record.compiled}.items():
            figures[figure] = value if figure not in figures else _worse(figure, figures[figure], value)
    return CaseSummary(
        name=name,
        outcomes=outcomes,
        bmodel_sha256=next((record.bmodel_sha256 for record in records if record.bmodel_sha256), ""),
        figures={name: None if value is None else float(value) for name, value in figures.items()},
    )


def _worse(name: str, one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return None
    return min(one, other) if any(part in name for part in _HIGHER_IS_BETTER) else max(one, other)


def _origin(file: RunFile) -> dict[str, str]:
    run = file.run
    tables: dict[str, dict[str, str] | dict[str, str | int]] = {
        "harness": run.harness,
        "toolchain": run.toolchain,
        "checkpoint": run.checkpoint,
        "grid": run.grid,
        "port": run.port,
        "options": run.options,
        "data": run.data,
        "machine": run.machine,
    }
    found = {f"{part}.{name}": str(value) for part, table in tables.items() for name, value in table.items()}
    lasting = ("driver", "firmware")
    found |= {f"health.{one.name}": str(one.value) for one in run.health if one.name in lasting}
    return found | {"limits_sha256": run.limits_sha256}


def _instant(started: str) -> float:
    """Seconds since 1970, so that runs of several time zones are in order; a text that is no time comes first."""
    try:
        return datetime.fromisoformat(started).timestamp()
    except ValueError:
        return 0.0
