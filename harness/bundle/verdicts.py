"""What runs of the suites say of a bundle's bmodels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from reports.schema import Outcome, RecordsError, RunFile, read

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from compile.toolchain import Toolchain
    from reference.checkpoint import Checkpoint

_KEPT = ("case", "suite", "check", "outcome", "metrics", "bmodel_sha256")


class BundleError(ValueError):
    """A bundle that cannot be made: says what was expected and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What verdicts must be of.

    Attributes:
        checkpoint: the reference's.
        toolchain: that compiled.
        cases: ids of all cases.
    """

    checkpoint: Checkpoint
    toolchain: Toolchain
    cases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The records of one run that concern a bundle's cases."""

    path: Path
    file: RunFile
    cases: tuple[str, ...]

    def refuse_others(self, bmodels: Mapping[str, str]) -> None:
        """See that the run judged these very bmodels, SHA-256 by case; a case has others besides, of harder models.

        Raises:
            BundleError: it judged none of a case.
        """
        for case, sha256 in bmodels.items():
            judged = {one.bmodel_sha256 for one in self.file.records if one.case == case} - {""}
            if sha256 not in judged:
                raise BundleError(
                    f"{self.path} judged other bmodels of {case}: {', '.join(sorted(judged)) or 'none'}, but should "
                    f"have judged {sha256}; run pytest suites/ again, or bundle without --run"
                )

    def told(self) -> list[dict[str, Any]]:
        """What goes into ``bundle.json``, a verdict for each record."""
        run = self.file.run
        return [
            {"run": run.id, "target": record.target}
            | {key: value for key, value in msgspec.to_builtins(record).items() if key in _KEPT}
            for record in self.file.records
            if record.case in self.cases
        ]

    @property
    def words(self) -> str:
        """How many, of which run, and how many are no pass."""
        mine = [record for record in self.file.records if record.case in self.cases]
        bad = sum(record.outcome not in {Outcome.PASSED, Outcome.SKIPPED} for record in mine)
        return f"{len(mine)} checks, {bad} not passed, by run {self.file.run.id} on {self.file.run.where}"


def read_verdicts(path: Path, subject: Subject) -> Verdicts:
    """Read a run, named by its folder or its records, that judged the cases of *subject*.

    Raises:
        BundleError: it was interrupted, judged something else, or has no record of a case.
        RecordsError, OSError: there is none that can be read.
    """
    found = read(path / "records.jsonl" if path.is_dir() else path)
    if found.interrupted:
        raise BundleError(f"{path} was interrupted; let it come to its end: pytest suites/ --resume {path}")
    theirs, ours = found.run.checkpoint, subject.checkpoint
    if theirs["sha256"] != ours.sha256:
        raise BundleError(
            f"{path} judged the checkpoint {theirs['name']}, sha256 {theirs['sha256']}, but "
            f"should have judged {ours.name}, {ours.sha256}"
        )
    if (other := found.run.toolchain["identity"]) != subject.toolchain.identity:
        raise BundleError(
            f"{path} judged bmodels of {other}, but should have judged those of {subject.toolchain.identity}"
        )
    judged = {record.case for record in found.records}
    if unjudged := [case for case in subject.cases if case not in judged]:
        has = ", ".join(sorted(filter(None, judged))) or "nothing"
        raise BundleError(f"{path} has no record of {', '.join(unjudged)}; it judged {has}")
    return Verdicts(path, found, subject.cases)


def newest_verdicts(runs: Path, subject: Subject, bmodels: Mapping[str, str]) -> Verdicts | None:
    """Of the latest run in the folder *runs* that judged these very bmodels; None where none did.

    Names of runs begin with the time of their start.
    """
    for records in sorted(runs.glob("*/records.jsonl"), reverse=True):
        try:
            found = read_verdicts(records.parent, subject)
            found.refuse_others(bmodels)
        except (BundleError, RecordsError, OSError):
            continue
        return found
    return None
