"""One side of a gate: a run, or several runs of the same thing, and LAMBADA results beside them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from harness.gate.finding import Key
from harness.lambada.results import Header, Result, ResultsError
from harness.lambada.results import read as read_lambada
from reports.schema import Outcome, Record, RecordsError, RunFile, read

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

RECORDS = "records.jsonl"
CANARY_SUITE = "device"
LAMBADA_SUITE = "lambada"
_SETUP, _TEARDOWN = " (setup)", " (teardown)"
_ENDED = {0, 1}  # pytest's exit codes of a run that judged everything
_WORSE = (Outcome.PASSED, Outcome.EXPECTED_FAILURE, Outcome.SKIPPED, Outcome.FAILED, Outcome.INFRA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One run of the suites.

    Attributes:
        path: of its records.
        checks: each check of a case once.
        canaries: what was said of the board between them.
    """

    path: Path
    file: RunFile
    checks: dict[Key, Record]
    canaries: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lambada:
    """LAMBADA results of one target."""

    path: Path
    header: Header
    results: tuple[Result, ...]

    @property
    def name(self) -> str:
        """What is paired with what has the same name on the other side: the target, and its state at the beginning."""
        key = self.header.key
        return key.target.get("target", "") + (f" from state {key.state_sha256[:12]}" if key.state_sha256 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What there is of one side.

    Attributes:
        path: as it was named.
        faults: why it, or a part of it, cannot be trusted, in words.
    """

    path: Path
    launches: tuple[Launch, ...]
    lambada: tuple[Lambada, ...] = ()
    faults: tuple[str, ...] = ()


def read_side(path: Path) -> Side:
    """Read a run's folder, its records file, or a folder that holds folders of runs; whatever is wrong is a fault."""
    try:
        files, lambada_files = _files(path)
    except OSError as error:
        return Side(path=path, launches=(), faults=(f"{path}: cannot be read: {error.strerror}",))
    faults: list[str] = []
    launches: list[Launch] = []
    for file in files:
        try:
            launch, found = launch_of(file, read(file))
        except (RecordsError, OSError) as error:
            faults.append(str(error))
            continue
        launches.append(launch)
        faults += found
    lambada = []
    for file in lambada_files:
        try:
            header, results = read_lambada(file)
        except ResultsError as error:
            faults.append(str(error))
            continue
        lambada.append(Lambada(path=file, header=header, results=results))
    if not files and not lambada_files:
        faults.append(f"{path}: should be a run's folder, or a folder of such folders, but no {RECORDS} is there")
    ids = Counter(launch.file.run.id for launch in launches)
    faults += [f"{path}: run {one} is there {n} times: a copy is no repeat" for one, n in ids.items() if n > 1]
    return Side(path=path, launches=tuple(launches), lambada=tuple(lambada), faults=tuple(faults))


def launch_of(path: Path, file: RunFile) -> tuple[Launch, list[str]]:
    """Sort a run's records by check, and say what is wrong with it."""
    faults = _faults(path, file)
    checks: dict[Key, Record] = {}
    twice: Counter[Key] = Counter()
    for record in file.records:
        if record.suite == CANARY_SUITE:
            continue
        key = Key(record.case, record.suite, record.check.removesuffix(_SETUP).removesuffix(_TEARDOWN))
        before = checks.get(key)
        if before is None:
            checks[key] = record
        elif record.check.endswith(_TEARDOWN) and not before.check.endswith(_TEARDOWN):
            checks[key] = _with_teardown(before, record)
        else:
            twice[key] += 1
    faults += [f"{path}: {' '.join(key)} stands there {n + 1} times, but should once" for key, n in twice.items()]
    canaries = tuple(record for record in file.records if record.suite == CANARY_SUITE)
    return Launch(path=path, file=file, checks=checks, canaries=canaries), faults


def worst_outcome(records: Iterable[Record]) -> Record:
    """Return the record with the worst outcome, the first of several."""
    return max(records, key=lambda record: _WORSE.index(record.outcome))


def _files(path: Path) -> tuple[list[Path], list[Path]]:
    if path.is_file():
        return [path], []
    if (path / RECORDS).is_file():
        return [path / RECORDS], []
    return sorted(path.glob(f"*/{RECORDS}")), sorted(path.glob("lambada/*.jsonl"))


def _faults(path: Path, file: RunFile) -> list[str]:
    if file.end is None:
        cut = "" if file.cut_line is None else f", in the middle of line {file.cut_line}"
        return [f"{path}: the run was interrupted after {len(file.records)} records{cut}; let it come to its end"]
    counted = Counter(record.outcome.value for record in file.records)
    faults = []
    if counted != Counter(file.end.outcomes):
        faults.append(f"{path}: the last line counts {file.end.outcomes}, but there are {dict(counted)}")
    if file.end.exit_status not in _ENDED:
        faults.append(f"{path}: pytest ended with {file.end.exit_status}, but should with 0 or 1")
    if file.end.exit_status == 0 and counted[Outcome.FAILED.value]:
        faults.append(f"{path}: {counted[Outcome.FAILED.value]} checks failed, but the last line says exit status 0")
    if not file.records:
        faults.append(f"{path}: the run is empty")
    return faults


def _with_teardown(call: Record, teardown: Record) -> Record:
    """One record of both: a check whose teardown failed has failed, whatever its call gave."""
    worse = worst_outcome([call, teardown])
    message = "\n".join(filter(None, [call.message, teardown.message]))
    return msgspec.structs.replace(call, outcome=worse.outcome, stage=worse.stage, message=message)
