"""One night from its lock to its verdict."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import filelock
import msgspec

from harness.gate.compare import gate
from harness.gate.finding import Kind
from harness.gate.sides import read_side
from harness.gate.text import MOST, report_words
from harness.nightly.nights import Night, NightError, baseline_of, begin, nights_of, unfinished
from harness.nightly.retention import remove, superfluous, sweep
from harness.nightly.suites import run_suites, sigterm_as_ctrl_c
from reports.history import RECORDS, History
from reports.history_page import write_history
from reports.schema import RecordsError, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from harness.gate.rules import Rules

HISTORY = "history.sqlite"
PAGE = "index.html"
VERDICT = "gate.txt"
_LOCK = ".nightly.lock"
_USAGE = 4  # pytest's exit status where an option cannot be met


class BusyError(RuntimeError):
    """Another nightly works in the folder."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a night is to do.

    Attributes:
        folder: where the nights are.
        command: what runs the suites into a folder that it is given.
        launches: how often.
        question: all that decides what the suites do; a night that was asked the same and interrupted is gone on with.
        rules: of the gate.
        allow: differences that the gate accepts, by name.
        keep: how many nights stay; None for all.
        keep_days: for how many days; None for ever.
        first_passes: whether a first night that is sound is a pass.
        say: receives a line at a time.
    """

    folder: Path
    command: Callable[[Path], list[str]]
    launches: int
    question: str
    rules: Rules
    allow: Sequence[str]
    keep: int | None
    keep_days: float | None
    first_passes: bool
    say: Callable[[str], None]


def spend(plan: Plan) -> int:
    """Run, judge, tidy up; return the gate's exit code.

    Where it is left by Ctrl-C, by a stop of the service manager or by an error, the night stays as interrupted, its
    runs stand in the history, and nothing runs any more. The next call that is asked the same goes on with it.

    Raises:
        BusyError: another nightly works there.
        NightError, HistoryError, OSError: the folder cannot be used.
    """
    with _only_one(plan.folder), sigterm_as_ctrl_c():
        sweep(plan.folder)
        nights = nights_of(plan.folder)
        baseline, left = baseline_of(nights), unfinished(nights, plan.question)
        with History(plan.folder / HISTORY) as history:
            night = left or begin(plan.folder, plan.question)
            goes_on = "goes on, " if left else ""
            plan.say(f"night {night.name}, {goes_on}baseline {baseline.name if baseline else 'none yet'}")
            try:
                night, statuses = _launch(night, plan)
                night = _judge(night, statuses, baseline, plan)
                doomed = superfluous(
                    nights_of(plan.folder), now=datetime.now(UTC), count=plan.keep, days=plan.keep_days
                )
                # The index keeps the figures of what is removed.
                _index(history, [*doomed, night], plan.say)
                remove(doomed)
                plan.say(f"removed: {', '.join(one.name for one in doomed) or 'nothing'}")
            finally:
                _index(history, nights_of(plan.folder)[-1:], plan.say)
                _write_page(history, plan.folder)
            plan.say(f"page: {plan.folder / PAGE}")
    return Kind.NOT_COMPARABLE.exit_code if night.state.code is None else night.state.code


def _launch(night: Night, plan: Plan) -> tuple[Night, list[int]]:
    """Run the suites as often as asked, from where the night was left; return what pytest ended with, for each launch.

    Where a run of before cannot be read, or the suites refuse to go on with it, as on another machine, that is a night
    which nobody can go on with: another one begins, and is returned.
    """
    statuses = []
    left = night.runs
    for number in range(1, plan.launches + 1):
        before = left[number - 1] if number <= len(left) else None
        try:
            ended = read(before / RECORDS).end if before else None
        except RecordsError as error:
            return _launch_another(night, str(error), plan)
        if ended:
            statuses.append(ended.exit_status)
            told = "was done, pytest ended with"
        else:
            resume = ["--resume", str(before)] if before else []
            statuses.append(run_suites(night.folder, [*plan.command(night.folder), *resume]))
            if before and statuses[-1] == _USAGE:
                return _launch_another(night, f"the suites do not go on with {before.name}, see above", plan)
            told = "gone on with, pytest ended with" if before else "pytest ended with"
        plan.say(f"launch {number} of {plan.launches}: {told} {statuses[-1]}")
    return night, statuses


def _launch_another(night: Night, why: str, plan: Plan) -> tuple[Night, list[int]]:
    new = begin(plan.folder, plan.question)
    plan.say(f"{why}: night {night.name} stays as interrupted, and {new.name} begins")
    return _launch(new, plan)


def accept(folder: Path, name: str) -> Night:
    """Make a night the baseline of those to come, because a person says so.

    Raises:
        BusyError: another nightly works there.
        NightError: there is no such night, or it was interrupted.
    """
    with _only_one(folder):
        found = next((night for night in nights_of(folder) if night.name == name), None)
        if found is None:
            names = ", ".join(night.name for night in nights_of(folder)[-5:]) or "none"
            raise NightError(f"{folder}: no night {name}; the latest are {names}")
        if found.state.finished is None:
            raise NightError(f"{found.folder}: was interrupted, so that nothing can be judged against it")
        later = [night for night in nights_of(folder) if night.state.good and night.name > name]
        for night in later:  # the baseline is the last good one
            night.with_state(msgspec.structs.replace(night.state, good=False, accepted=False))
        found = found.with_state(msgspec.structs.replace(found.state, good=True, accepted=True))
        with History(folder / HISTORY) as history:
            _write_page(history, folder)
    return found


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        running = [night.name for night in nights_of(folder) if night.is_running()]
        which = f"night {running[-1]} runs" if running else "it is about to begin or to end"
        raise BusyError(
            f"{folder}: another rwkv-tpu nightly works there ({which}); wait for it, or name another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _judge(night: Night, statuses: Sequence[int], baseline: Night | None, plan: Plan) -> Night:
    """Gate a night against the baseline; the first good one has nothing to be judged against, and is no pass.

    *statuses* are those that pytest ended with: where a run says otherwise, pytest broke behind its last check.
    """
    new = read_side(night.folder)
    itself = replace(new, faults=())  # which are told once
    report = gate(itself if baseline is None else read_side(baseline.folder), new, plan.rules, plan.allow)
    words, code = report_words(report, most=MOST), report.exit_code
    told = [launch.file.end.exit_status for launch in new.launches if launch.file.end]
    if sorted(told) != sorted(statuses):
        words += f"\n\npytest ended with {list(statuses)}, but the runs say {told}: it broke, see its output."
        code = code or Kind.INFRA.exit_code
    good = code == 0
    if baseline is None:
        words += "\n\nThere was no good night to judge this one against: it was compared with itself."
        if good:
            words += " It is sound, and becomes the baseline; a first measurement is "
            words += "a pass because it was asked for." if plan.first_passes else "no pass."
            code = 0 if plan.first_passes else Kind.NOT_COMPARABLE.exit_code
    elif not good:
        words += f"\n\nWhere that is meant: rwkv-tpu nightly {plan.folder} --accept {night.name}"
    plan.say(words)
    (night.folder / VERDICT).write_text(words + "\n", encoding="utf-8")
    return night.with_state(
        msgspec.structs.replace(
            night.state,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            baseline=baseline.name if baseline else "",
            code=code,
            good=good,
        )
    )


def _index(history: History, nights: Sequence[Night], say: Callable[[str], None]) -> None:
    """Put runs into the history; what cannot be read is told, and the night's verdict has said so already."""
    for run in (run for night in nights for run in night.runs):
        try:
            history.add(run, replace=True)
        except (RecordsError, OSError) as error:
            say(f"not in the history: {error}")


def _write_page(history: History, folder: Path) -> None:
    nights = nights_of(folder)
    notes = {run.name: f"night {night.name}: {night.words}" for night in nights for run in night.runs}
    # A night that left no run stands nowhere else on the page.
    latest = f"Latest night, {nights[-1].name}: {nights[-1].words}" if nights else ""
    write_history(history.runs(), folder / PAGE, notes, latest)
