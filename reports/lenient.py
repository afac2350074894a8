"""Reads what can be read of records files, and lists what cannot: a report shows both."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from reports.schema import VERSION, End, Line, Record, Run, RunFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

RECORDS = "records.jsonl"
_CANARY = "device"  # the suite that asks a board whether it is well, before and after
_DECODER = msgspec.json.Decoder(Line)
_WRONG = (msgspec.DecodeError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRun:
    """A run, and what of its file does not fit.

    Attributes:
        path: of its records.
        file: what was read; records before and after a broken line.
        broken: what could not be read or contradicts the rest: file, line, what was expected and what was found.
    """

    path: Path
    file: RunFile
    broken: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """Whether the run can be trusted as a whole: ``complete``, ``interrupted`` or ``broken``."""
        if self.broken:
            return "broken, interrupted" if self.file.interrupted else "broken"
        return "interrupted" if self.file.interrupted else "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a report is made of.

    Attributes:
        runs: in the order of their start.
        unreadable: files of which nothing can be told: file, line, what was expected and what was found.
    """

    runs: tuple[LoadedRun, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[str, ...]:
        """Everything that could not be read, of all files."""
        return (*self.unreadable, *(fault for run in self.runs for fault in run.broken))


def load(paths: Iterable[Path]) -> Loaded:
    """Read runs: each path is a records file, a run's folder, or a folder of such folders.

    A file that is named twice is read once.

    Raises:
        FileNotFoundError: a path is not there, or is a folder without runs.
    """
    runs, unreadable = [], []
    for file in dict.fromkeys(found.resolve() for path in paths for found in _files(path)):
        try:
            runs.append(_load_file(file))
        except (_UnreadableError, OSError) as error:
            unreadable.append(str(error))
    return Loaded(
        runs=tuple(sorted(runs, key=lambda run: (run.file.run.started, run.file.run.id))), unreadable=tuple(unreadable)
    )


class _UnreadableError(ValueError):
    """Without its first line nobody can tell where a file's records come from."""


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / RECORDS).is_file():
        return [path / RECORDS]
    if found := sorted(path.glob(f"*/{RECORDS}")):
        return found
    raise FileNotFoundError(f"{path}: should be a run's folder, its {RECORDS} or a folder of runs, but none is there")


def _load_file(path: Path) -> LoadedRun:
    *lines, incomplete = path.read_bytes().split(b"\n")
    run = _first_line(path, lines[0] if lines else incomplete)
    end: End | None = None
    records: list[Record] = []
    broken: list[str] = []
    for number, text in enumerate(lines[1:], 2):
        try:
            line = _DECODER.decode(text)
        except _WRONG as error:
            broken.append(f"{path}:{number}: {error}")
            continue
        if isinstance(line, Record):
            records.append(line)
        elif isinstance(line, End) and number == len(lines):
            end = None if incomplete else line
        else:
            broken.append(f"{path}:{number}: a line of type 'run' or 'end' stands between the records")
    if end is not None:
        broken += _contradictions(f"{path}:{len(lines)}", records, len(broken), end)
    broken += _repeated(path, records)
    cut_line = len(lines) + 1 if incomplete else None
    file = RunFile(run=run, records=tuple(records), end=end, cut_line=cut_line)
    return LoadedRun(path=path, file=file, broken=tuple(broken))


def _first_line(path: Path, text: bytes) -> Run:
    try:
        line = _DECODER.decode(text)
    except _WRONG as error:
        raise _UnreadableError(f"{path}:1: should be the line of type 'run', but: {error}") from error
    if not isinstance(line, Run):
        raise _UnreadableError(f"{path}:1: should be the line of type 'run'")
    if line.schema != VERSION:
        raise _UnreadableError(f"{path}:1: schema version {line.schema}, but this release reads {VERSION}")
    return line


def _repeated(path: Path, records: Sequence[Record]) -> list[str]:
    """Checks that stand there more often than once. A board's canary does, by its nature."""
    found = Counter((one.case, one.suite, one.check) for one in records if one.suite != _CANARY)
    return [f"{path}: {' '.join(filter(None, key))} stands there {n} times" for key, n in found.items() if n > 1]


def _contradictions(where: str, records: list[Record], broken: int, end: End) -> list[str]:
    """What the last line says otherwise; a broken line may be one of the records that it counts."""
    if end.records != len(records) + broken:
        unread = f", and {broken} broken lines" if broken else ""
        return [f"{where}: the last line counts {end.records} records, but there are {len(records)}{unread}"]
    counted = Counter(record.outcome.value for record in records)
    if not broken and counted != Counter(end.outcomes):
        return [f"{where}: the last line counts {end.outcomes}, but there are {dict(counted)}"]
    return []
