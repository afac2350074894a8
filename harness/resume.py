"""Going on with a run that did not come to its end: what is kept of it, and whether it may be gone on with at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.gate.comparability import differences, manifest_of
from harness.gate.finding import Key
from harness.gate.sides import CANARY_SUITE
from harness.known import name_and_part
from reports.schema import Outcome, Record, RecordsError, Run, read

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class ResumeError(ValueError):
    """A run that cannot be gone on with: says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """A run as it was left.

    Attributes:
        folder: of the run.
        run: its first line.
        kept: records of checks that are finished; these are not made again.
        dropped: records without a verdict, because of the board, the host or the way to it: made again.
        cut_line: number of the line that was not written to its end; None where there is none.
        finished: whether the run came to its end.
    """

    folder: Path
    run: Run
    kept: tuple[Record, ...]
    dropped: int
    cut_line: int | None
    finished: bool

    @property
    def whole(self) -> bool:
        """Whether it came to its end, and nothing of it is made again."""
        return self.finished and not self.dropped

    @property
    def done(self) -> frozenset[Key]:
        """Checks that are finished."""
        return frozenset(key_of(record) for record in self.kept if record.suite != CANARY_SUITE)

    def refuse_another(self, now: Run) -> None:
        """See that a run that would begin with the line *now* is the same one.

        Raises:
            ResumeError: it is another one; names each difference.
        """
        found = [
            f"{one.name} was {one.base}, and is {one.new}"
            for one in differences(manifest_of(self.run), manifest_of(now))
        ]
        if self.run.checks not in {0, now.checks}:
            found.append(f"{self.run.checks} checks were asked for, and now {now.checks} are: see files, -k and -m")
        if found:
            listed = "".join(f"\n  {line}" for line in found)
            raise ResumeError(f"{self.folder}: this would be another run, so that it cannot be gone on with:{listed}")

    def refuse_strangers(self, collected: Iterable[Key]) -> None:
        """See that every finished check is one of those that pytest has *collected*.

        Raises:
            ResumeError: one is not; names it.
        """
        strangers = sorted(self.done - set(collected))
        if strangers:
            first = " ".join(filter(None, strangers[0]))
            raise ResumeError(
                f"{self.folder}: {len(strangers)} of its finished checks are not among those asked for now, "
                f"such as {first}; choose files, -k and -m as that run did: {' '.join(self.run.command[1:])}"
            )


def take_up(path: Path) -> Earlier:
    """Read a run that is to go on: its folder, or its records file.

    A board that fell sick leaves checks in doubt since its last good canary: those are made again, too.

    Raises:
        ResumeError: there is none, or its records cannot be trusted.
    """
    file = path / "records.jsonl" if path.is_dir() else path
    try:
        found = read(file)
    except OSError as error:
        raise ResumeError(
            f"{path}: should be a run's folder, but {file.name} cannot be read: {error.strerror}"
        ) from error
    except RecordsError as error:
        raise ResumeError(f"{error}; nothing can be gone on with: start a new run") from error
    trusted = _before_doubt(found.records)
    kept = tuple(record for record in trusted if record.outcome is not Outcome.INFRA)
    dropped = len(found.records) - len(kept)
    return Earlier(file.parent, found.run, kept, dropped, found.cut_line, finished=found.end is not None)


def asked_options(path: Path) -> list[str]:
    """Arguments of pytest that say what a run was asked, as it recorded them.

    Raises:
        ResumeError: as `take_up`.
    """
    return [f"--{name}={value}" for name, value in take_up(path).run.options.items()]


def key_of(record: Record) -> Key:
    """The check that a record is of, be it of its call, setup or teardown."""
    return Key(record.case, record.suite, name_and_part(record)[0])


def has_failed(record: Record) -> bool:
    """Whether it makes pytest end with 1: a failure, no verdict, or a pass where a failure is expected."""
    stale = record.outcome is Outcome.PASSED and record.expected is not None
    return stale or record.outcome in {Outcome.FAILED, Outcome.INFRA}


def _before_doubt(records: tuple[Record, ...]) -> tuple[Record, ...]:
    canaries = [i for i, record in enumerate(records) if record.suite == CANARY_SUITE]
    if all(records[i].outcome is not Outcome.INFRA for i in canaries):
        return records
    first_bad = next(i for i in canaries if records[i].outcome is Outcome.INFRA)
    return records[: max((i + 1 for i in canaries if i < first_bad), default=0)]
