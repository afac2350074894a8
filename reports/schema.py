"""The record format, version 1: a JSON object a line, ``run`` first, then ``record`` per case and check, ``end`` last.

A file without its last line is of a run that was interrupted. Every metric has its unit in its name. The format is
documented in ``docs/records.md``.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 1


class RecordsError(ValueError):
    """A records file that cannot be trusted: names the file, the line, what was expected and what was found."""


class Stage(Enum):
    """How far along the way from checkpoint to token a check got, or where it failed."""

    EXPORT = "export"
    TRANSFORM = "transform"
    LOWER = "lower"
    CODEGEN = "codegen"
    LOAD = "load"
    RUN = "run"
    NUMERICS = "numerics"
    PERF = "perf"


class Outcome(Enum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    EXPECTED_FAILURE = "expected-failure"
    SKIPPED = "skipped"
    INFRA = "infra"  # the device or the host is sick: no verdict on the compiler


class Reading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that a board tells of itself, or why it does not."""

    name: str
    value: float | str | None  # null: unavailable
    unit: str = ""
    source: str = ""  # a file or a command
    why_unavailable: str = ""


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a check is expected to fail, as the list of expected failures says."""

    reason: str
    link: str = ""  # to the report of the fault
    since: str = ""  # ISO 8601 date of the entry
    look_again: str = ""  # ISO 8601 date


class Run(msgspec.Struct, tag="run", tag_field="type", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where every record of the file comes from."""

    schema: int
    id: str
    started: str  # ISO 8601 with offset
    command: tuple[str, ...]
    target: str  # "cmodel"; or words that begin with "simulator"; anything else is a board
    chip: str = "BM1684X"  # that the target is, or simulates
    harness: dict[str, str]  # version, git commit, whether there were local changes
    toolchain: dict[str, str]  # version, compiler commit, wheel's SHA-256, identity
    checkpoint: dict[str, str | int]  # name, container, SHA-256, sizes, codec
    grid: dict[str, str]  # name, SHA-256 of the file
    port: dict[str, str] = msgspec.field(default_factory=dict)  # SHA-256 of somebody else's map and files; empty: ours
    limits_sha256: str
    options: dict[str, str] = msgspec.field(default_factory=dict)  # of the suites, defaults included
    data: dict[str, str] = msgspec.field(default_factory=dict)  # SHA-256 of files that the harness reads
    machine: dict[str, str | int]  # system, processor, cores, memory_bytes, python
    packages: dict[str, str]
    health: tuple[Reading, ...] = ()  # of the board, before the first case; none of the plain simulator
    checks: int = 0  # that it set out to make; 0 in older files
    resumed: tuple[str, ...] = ()  # when it was gone on with, ISO 8601 with offset

    @property
    def where(self) -> str:
        """The target in words: a simulator is never called a board."""
        if self.target == "cmodel":
            return f"the {self.chip} simulator (cmodel)"
        simulated = self.target.startswith("simulator")
        return f"the {self.chip} {self.target}" if simulated else f"{self.chip} board {self.target}"


class Record(msgspec.Struct, tag="record", tag_field="type", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One check of one case."""

    case: str  # the case's id; empty for a check that concerns no compiled graph
    suite: str
    check: str
    outcome: Outcome
    stage: Stage | None = None  # where it failed; None where it did not
    message: str = ""
    seconds: float  # wall time of the check on this machine: no performance figure
    metrics: dict[str, float | None] = msgspec.field(default_factory=dict)  # null: NaN or infinite
    kl_by_position: dict[int, float | None] = msgspec.field(
        default_factory=dict
    )  # nats, by index of token; null as above
    predicted: dict[str, int | float] = msgspec.field(
        default_factory=dict
    )  # by the compiler's cycle profile: no measurement
    compiled: dict[str, int | float] = msgspec.field(default_factory=dict)  # time, memory and size
    bmodel_sha256: str = ""
    runtime: dict[str, str] = msgspec.field(default_factory=dict)  # versions and hashes of the libraries that ran
    target: str = ""  # as in the line of type "run": a record that stands alone still tells
    expected: Expected | None = None  # why it should fail; a check that passed all the same is a stale expectation


class End(msgspec.Struct, tag="end", tag_field="type", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last line: the run came to its end."""

    finished: str
    records: int
    outcomes: dict[str, int]
    exit_status: int
    unmatched: tuple[str, ...] = ()  # expectations of failures that match no check any more
    health: tuple[Reading, ...] = ()  # of the board, after the last case


Line = Run | Record | End


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """A records file, read and checked."""

    run: Run
    records: tuple[Record, ...]
    end: End | None
    cut_line: int | None = None  # the number of the line that was not written to its end

    @property
    def interrupted(self) -> bool:
        """Whether the run ended before its end."""
        return self.end is None


def read(path: Path) -> RunFile:
    """Read a records file. Raises as `parse` does, and OSError where the file cannot be had."""
    return parse(path.read_bytes(), path)


def parse(text: bytes, path: Path) -> RunFile:
    """Make sense of the contents of a records file; *path* is its name in an error.

    Raises:
        RecordsError: a line does not parse, is out of place, or the last line's counts are wrong; names the line. An
            incomplete very last line is what a killed run leaves: the run is called interrupted, and ``cut_line`` of
            the result names it.
    """
    decoder = msgspec.json.Decoder(Line)
    lines = text.split(b"\n")
    incomplete = lines.pop()  # empty where the file ends with a newline, as it should
    parsed: list[Line] = []
    for number, line in enumerate(lines, 1):
        try:
            parsed.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise RecordsError(f"{path}:{number}: {error}") from error
        except UnicodeDecodeError as error:
            raise RecordsError(f"{path}:{number}: should be UTF-8, but {error}") from error
    if not parsed or not isinstance(parsed[0], Run):
        raise RecordsError(f"{path}:1: should be the line of type 'run'")
    run = parsed[0]
    if run.schema != VERSION:
        raise RecordsError(f"{path}:1: schema version {run.schema}, but this release reads {VERSION}")
    last = parsed[-1]
    end = last if isinstance(last, End) and not incomplete else None
    records = []
    for number, between in enumerate(parsed[1 : -1 if isinstance(last, End) else None], 2):
        if not isinstance(between, Record):
            raise RecordsError(f"{path}:{number}: a line of type 'run' or 'end' stands between the records")
        records.append(between)
    if end is not None and end.records != len(records):
        raise RecordsError(
            f"{path}:{len(parsed)}: the last line counts {end.records} records, but there are {len(records)}"
        )
    counted = dict(Counter(record.outcome.value for record in records))
    if end is not None and end.outcomes != counted:
        raise RecordsError(f"{path}:{len(parsed)}: the last line counts {end.outcomes}, but there are {counted}")
    return RunFile(run=run, records=tuple(records), end=end, cut_line=len(lines) + 1 if incomplete else None)
