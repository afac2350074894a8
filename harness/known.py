"""Failures that are expected, as data: a list per toolchain in ``suites/known/``. Strict: what is not so is told."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import date  # noqa: TC003 - msgspec reads the annotations
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from harness.cases import GRIDS, load_grid
from harness.gate.finding import Key
from reports.schema import Expected, Outcome, Record, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.cases import Case

KNOWN = Path(__file__).parent.parent / "suites" / "known"
NONE = "none"
"""What the option ``--known`` says where a run is to be judged without a list."""

HEADER = re.compile(r"\s*\[\[\s*known\s*\]\]")
"""How the line begins that opens an entry."""

_PLACE = re.compile(r"\$\.known\[(\d+)\](?:\.(\w+))?")
_FIELD = re.compile(r"field `(\w+)`")


class KnownError(ValueError):
    """A list of expected failures that cannot be had or makes no sense: names the file, the line and what to do."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One expectation: every check that the patterns match fails at the stage.

    Attributes:
        cases: a pattern of case ids, as those of file names; ``*`` also takes what concerns no case.
        suite: the same of a suite's name, such as ``parity``.
        check: of a check's name, such as ``from_zero_state``.
        checkpoint: of the checkpoint's name: many faults show with one checkpoint only.
        target: of what the records call the target, such as ``cmodel`` or a board's number.
        stage: where the checks fail.
        reason: why, for people.
        link: to the report of the fault.
        since: when the entry was made.
        look_again: from this day on, runs ask for somebody to see whether the entry is still needed.
    """

    cases: str
    suite: str = "*"
    check: str = "*"
    checkpoint: str = "*"
    target: str = "*"
    stage: Stage
    reason: str
    link: str = ""
    since: date
    look_again: date

    def __post_init__(self) -> None:
        """See that the entry makes sense.

        Raises:
            ValueError: it does not; says what should be.
        """
        if not self.reason.strip():
            raise ValueError("reason is empty, but should say why the checks fail")
        if self.look_again <= self.since:
            raise ValueError(f"look_again is {self.look_again}, but should be later than since, {self.since}")

    @property
    def patterns(self) -> dict[str, str]:
        """All patterns by their names, those that were left out included."""
        return {name: getattr(self, name) for name in ("cases", "suite", "check", "checkpoint", "target")}

    @property
    def title(self) -> str:
        """The patterns as the file has them, without those that take everything; no two entries share it."""
        told = {name: pattern for name, pattern in self.patterns.items() if name == "cases" or pattern != "*"}
        return ", ".join(f"{name} = {pattern!r}" for name, pattern in told.items())

    def concerns(self, checkpoint: str, target: str) -> bool:
        """Whether it speaks of runs of that checkpoint on that target at all."""
        return fnmatchcase(checkpoint, self.checkpoint) and fnmatchcase(target, self.target)

    def matches(self, key: Key) -> bool:
        """Whether it speaks of that check, in a run that it concerns."""
        patterns = zip(key, (self.cases, self.suite, self.check), strict=True)
        return all(fnmatchcase(name, pattern) for name, pattern in patterns)

    @property
    def expected(self) -> Expected:
        """What a record keeps of it."""
        return Expected(
            reason=self.reason,
            link=self.link,
            since=self.since.isoformat(),
            look_again=self.look_again.isoformat(),
        )


class _KnownFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    known: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a run expects to fail. Of several entries that match a check, the first decides.

    Attributes:
        path: the list; None where there is none.
        sha256: of the file; empty where there is none.
        entries: those that concern the run's checkpoint and target.
    """

    path: Path | None = None
    sha256: str = ""
    entries: tuple[Entry, ...] = ()

    def entry_for(self, key: Key) -> Entry | None:
        """The entry that decides about a check; None where it is expected to pass."""
        return next((entry for entry in self.entries if entry.matches(key)), None)

    def judged(self, record: Record) -> Record:
        """Hold a record against what was expected of its check.

        A check that failed where it should is an expected failure. One that failed elsewhere stays a failure, and one
        that passed stays passed; both then say what was expected, and carry it. Setup and teardown never fail as
        expected. What was skipped, or is INFRA, tells nothing and stays as it is.
        """
        name, part = name_and_part(record)
        entry = self.entry_for(Key(record.case, record.suite, name))
        if entry is None or record.outcome not in {Outcome.PASSED, Outcome.FAILED}:
            return record
        if record.outcome is Outcome.FAILED and record.stage is entry.stage and not part:
            return msgspec.structs.replace(record, outcome=Outcome.EXPECTED_FAILURE, expected=entry.expected)
        became = "passes" if record.outcome is Outcome.PASSED else f"failed {_where(record, part)}"
        words = f"{became}, but is expected to fail at {entry.stage.value}: {entry.reason}"
        message = "\n".join(filter(None, [words, record.message]))
        return msgspec.structs.replace(record, message=message, expected=entry.expected)

    def unmatched(self, checks: Iterable[Key]) -> tuple[Entry, ...]:
        """Entries that decide about none of the *checks*, which are all that there can be."""
        used = {entry for key in checks if (entry := self.entry_for(key)) is not None}
        return tuple(entry for entry in self.entries if entry not in used)

    def due(self, today: date) -> tuple[Entry, ...]:
        """Entries that it is time to look at again."""
        return tuple(entry for entry in self.entries if entry.look_again <= today)


def name_and_part(record: Record) -> tuple[str, str]:
    """A check's name, and ``setup`` or ``teardown`` where the record is of that part alone, else nothing."""
    name, _, part = record.check.partition(" ")
    return name, part.strip("()")


def shipped_file(version: str) -> Path:
    """Where the list of a TPU-MLIR release is, if it has one."""
    return KNOWN / f"{version}.toml"


def load_known(asked: str | None, *, version: str, checkpoint: str, target: str) -> Known:
    """Read what a run expects to fail.

    Args:
        asked: a file; ``none`` for a run without expectations; None for the release's own list, if it has one.
        version: of TPU-MLIR.
        checkpoint: the run's, by name; entries that do not concern it are left out.
        target: the run's, as its records call it; the same.

    Raises:
        KnownError: a file is not there, or is no list.
    """
    if asked == NONE or (asked is None and not shipped_file(version).is_file()):
        return Known()
    path = shipped_file(version) if asked is None else Path(asked)
    text = read_known(path)
    entries = tuple(entry for entry in parse_known(text, path) if entry.concerns(checkpoint, target))
    return Known(path=path, sha256=hashlib.sha256(text).hexdigest(), entries=entries)


def read_known(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        KnownError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise KnownError(f"{path}: cannot be read: {error.strerror}; name a list of expected failures") from error


def parse_known(text: bytes, path: Path) -> tuple[Entry, ...]:
    """Make sense of a list; *path* is its name in an error.

    Raises:
        KnownError: it makes no sense; names the line, and what was expected.
    """
    form = "docs/known.md says what an entry looks like"
    try:
        entries = msgspec.toml.decode(text, type=_KnownFile).known
    except msgspec.ValidationError as error:
        quotes = "; a date has no quotes around it" if "`date`" in str(error) else ""
        raise KnownError(f"{path}:{_line_of(str(error), text)} {error}{quotes}; {form}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KnownError(f"{path}: {error}; {form}") from error
    for number, entry in enumerate(entries):
        if entry.patterns in [before.patterns for before in entries[:number]]:
            line = _line_of(f"$.known[{number}]", text)
            raise KnownError(f"{path}:{line} an entry before this one has the same patterns; keep one of them")
    return entries


def cases_that_ship() -> tuple[Case, ...]:
    """Every case of the grids that ship, each once."""
    found = [case for path in sorted(GRIDS.glob("*.toml")) for case in load_grid(path.stem).cases]
    return tuple(dict.fromkeys(found))


def _where(record: Record, part: str) -> str:
    if part:
        return f"in its {part}"
    return f"at {record.stage.value}" if record.stage else "before any stage"


def _line_of(words: str, text: bytes) -> str:
    """The line that an error is about, with a colon behind it: of the value, or of its entry; empty if unknown."""
    lines = text.decode().splitlines()
    heads = [number for number, line in enumerate(lines) if HEADER.match(line)]
    found = _PLACE.search(words)
    if found is None or int(found[1]) >= len(heads):
        return ""
    begin, *behind = heads[int(found[1]) :]
    unknown = _FIELD.search(words)
    name = found[2] or (unknown[1] if unknown else "")
    for number in range(begin + 1, behind[0] if behind else len(lines)):
        if name and re.match(rf"\s*{name}\s*=", lines[number]):
            return f"{number + 1}:"
    return f"{begin + 1}:"
