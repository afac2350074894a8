"""Tries one compiler release on one case: good, bad, or not to be told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compile.toolchain import ToolchainError
from harness.bisection import Answer
from harness.gate.finding import Kind
from harness.launches import RECORDS, LaunchError, answers, launch, set_aside
from reports.schema import Outcome, read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from compile.toolchain import Toolchain
    from harness.cases import Case
    from reports.schema import RunFile

GRID = "case.toml"
_BAD = {Outcome.FAILED, Outcome.EXPECTED_FAILURE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What became of a release; *why* is empty of a good one."""

    release: str
    answer: Answer
    why: str = ""

    @property
    def words(self) -> str:
        """Answer and reason in a line."""
        return f"{self.answer.value}{f': {self.why}' if self.why else ''}"


@dataclass(frozen=True, kw_only=True)
class Trier:
    """How releases are tried.

    Attributes:
        folder: where the runs go, a folder for each release.
        arguments: of the suites, but for the release.
        command: what runs the suites into a folder that it is given, with the arguments that it is given.
        install: gives a release's toolchain, installing it where it is not there.
        say: receives a line at a time.
    """

    folder: Path
    arguments: Sequence[str]
    command: Callable[[Path, Sequence[str]], list[str]]
    install: Callable[[str], Toolchain]
    say: Callable[[str], None]

    def arguments_of(self, release: str) -> list[str]:
        """All arguments of the suites."""
        return [*self.arguments, "--toolchain", release]

    def run(self, release: str) -> Trial:
        """Try a release, unless the folder has its run.

        Raises:
            LaunchError: the suites were asked for something that there is not.
        """
        runs = self.folder / release
        set_aside(self.folder, runs, self.say)
        if not (found := answers(runs)):
            try:
                self.install(release)
                found = (launch(self.folder, runs, self.command(runs, self.arguments_of(release)), self.say),)
            except ToolchainError as error:
                return Trial(release=release, answer=Answer.SKIP, why=str(error).splitlines()[0])
            except LaunchError as error:
                if error.kind is not Kind.INFRA:
                    raise
                return Trial(release=release, answer=Answer.SKIP, why=str(error))
        return judge(release, read(found[-1] / RECORDS))


def judge(release: str, file: RunFile) -> Trial:
    """Good where each check that was made passed; one that failed as expected is bad as well."""
    bad = next((record for record in file.records if record.outcome in _BAD), None)
    if bad is not None:
        stage = f" at {bad.stage.value}" if bad.stage else ""
        message = (bad.message.splitlines() or [""])[0]
        return Trial(release=release, answer=Answer.BAD, why=f"{bad.suite}/{bad.check} failed{stage}: {message}")
    if not any(record.outcome is Outcome.PASSED for record in file.records):
        return Trial(release=release, answer=Answer.SKIP, why="no check was made: all were skipped")
    return Trial(release=release, answer=Answer.GOOD)


def write_grid(folder: Path, case: Case) -> Path:
    """Write a grid that has the case, and return its file; beside the case it has what any grid has."""
    chunks = [case.graph.T] if case != case.decode else []
    lines = {
        "quantizations": [case.quantization.value],
        "chunk_lengths": chunks,
        "variants": [case.variant],
        "blocks": [case.blocks],
        "options": [[option.value for option in case.options]],
    }
    path = folder / GRID  # lists of words are written in TOML as in JSON
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()), encoding="utf-8")
    return path
