"""Launches of the suites into a folder: one that came to its end is an answer, and is not made again."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

from harness.gate.finding import Kind
from harness.nightly.nights import LOCK
from harness.nightly.suites import run_suites
from reports.schema import Outcome, RecordsError, RunFile, read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

RECORDS = "records.jsonl"
ASIDE = "aside"
"""The folder of runs that are no answer: interrupted, broken, or of a device that was sick."""

_ANSWERED = {0, 1}  # pytest's exit statuses of a run that judged everything
_USAGE = {4, 5}  # an option that cannot be met; no test was chosen


class LaunchError(RuntimeError):
    """A launch that gave no answer; *kind* says whether what was asked or the machine is to blame."""

    def __init__(self, text: str, kind: Kind) -> None:
        super().__init__(text)
        self.kind = kind


def answers(runs: Path) -> tuple[Path, ...]:
    """The folders of all runs in *runs* that are answers, the earliest first."""
    return tuple(path.parent for path in sorted(runs.glob(f"*/{RECORDS}")) if not why_no_answer(path.parent))


def why_no_answer(run: Path) -> str:
    """Why a run is no answer; empty where it is one."""
    try:
        file = read(run / RECORDS)
    except (RecordsError, OSError) as error:
        return str(error)
    if file.end is None:
        return f"{run}: interrupted after {len(file.records)} checks"
    if file.end.exit_status not in _ANSWERED:
        return f"{run}: pytest ended with {file.end.exit_status}"
    return infra_words(file)


def infra_words(file: RunFile) -> str:
    """What the first check without a verdict says of the device or the machine; empty where there is none."""
    found = next((record for record in file.records if record.outcome is Outcome.INFRA), None)
    if found is None:
        return ""
    first = (found.message.splitlines() or ["without a word"])[0]
    return f"{' '.join(filter(None, [found.case, found.suite, found.check]))}: {first}"


def set_aside(folder: Path, runs: Path, say: Callable[[str], None]) -> None:
    """Move what is no answer from *runs* to the folder's place for such; wait first for who still writes there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for suites that a killed command left behind in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
    for path in sorted(runs.glob(f"*/{RECORDS}")):
        if why := why_no_answer(path.parent):
            place = folder / ASIDE / runs.name
            place.mkdir(parents=True, exist_ok=True)
            path.parent.rename(place / path.parent.name)
            say(f"set aside, to be run again: {why}")


def launch(folder: Path, runs: Path, command: Sequence[str], say: Callable[[str], None]) -> Path:
    """Run *command*, which makes a run in *runs*, to its end, and return the folder of that run.

    Where this is left by an exception, the suites get a Ctrl-C first (see :func:`harness.nightly.suites.run_suites`).

    Raises:
        LaunchError: the run gave no answer; it is set aside.
    """
    set_aside(folder, runs, say)
    known = set(answers(runs))
    status = run_suites(folder, command)
    made = [run for run in answers(runs) if run not in known]
    if len(made) == 1 and status in _ANSWERED:
        return made[0]
    reasons = [why for path in sorted(runs.glob(f"*/{RECORDS}")) if (why := why_no_answer(path.parent))]
    kind = Kind.NOT_COMPARABLE if status in _USAGE else Kind.INFRA
    because = reasons[0] if reasons else f"pytest ended with {status}, and said why above"
    set_aside(folder, runs, lambda _: None)
    raise LaunchError(f"no answer from {runs.name}: {because}", kind)
