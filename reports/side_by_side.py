"""Two sides of runs as tables in Markdown: what became of each case, figure by figure."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.metric import Kind, measured_kind, unit_of
from reports.schema import Outcome
from reports.words import figure_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from reports.schema import Record, RunFile

Check = tuple[str, str, str]  # case, suite, check

_WORSE = (Outcome.PASSED, Outcome.EXPECTED_FAILURE, Outcome.SKIPPED, Outcome.FAILED, Outcome.INFRA)
_MOST = 40  # checks that are listed
_HIGHER_IS_BETTER = {"top1_share", "lambada_accuracy", "exact_matches"}
_NO_FIGURES = {"positions", "near_ties", "questions", "prompt_tokens"}  # what was asked, not what came of it
_WRITTEN = {"kl": "KL", "nmse": "NMSE", "ddr": "DDR", "tiu": "TIU", "gdma": "GDMA", "top1": "top-1"}
_DISTANCE = ("kl_mean_nats", "kl_worst_nats", "total_kl_mean_nats", "top1_share", "exact_matches", "state_nmse")
_PROGRAM = ("tiu_instructions", "gdma_instructions", "ddr_read_bytes", "ddr_write_bytes")
_PREDICTED = ("predicted_ms", "predicted_cycles")
_COMPILE = ("compile_seconds", "compile_peak_bytes")
_SIZE = ("bmodel_bytes",)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnePrice:
    """A case's code by both releases, priced by one and the same estimator, the new release's.

    Attributes:
        own_cycles: of the old release's code, by the old release itself.
        old_cycles: of the old release's code, by the new one.
        new_cycles: of the new release's code, by the new one.
        reason: why it could not be priced; the cycles are None then.
    """

    case: str
    own_cycles: int | None = None
    old_cycles: int | None = None
    new_cycles: int | None = None
    same_program: bool = False  # instructions and bytes of old and new, whatever they cost
    reason: str = ""

    @property
    def words(self) -> str:
        """What changed from the old release to the new one."""
        if self.reason:
            return f"not priced: {' '.join(self.reason.split())}"
        code = not self.same_program or self.old_cycles != self.new_cycles
        estimator = self.own_cycles != self.old_cycles
        told = [name for name, changed in (("the code", code), ("the estimator", estimator)) if changed]
        return " and ".join(told) or "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """One table of cases.

    Attributes:
        note: what a reader must know of its figures.
    """

    heading: str
    note: str
    names: tuple[str, ...]


def outcome_lines(old: Sequence[RunFile], new: Sequence[RunFile]) -> Iterator[str]:
    """How many checks ended how, and each whose outcome is another: of repeats the worst counts."""
    before, after = _outcomes(old), _outcomes(new)
    yield _row(["outcome", "old", "new"])
    yield "|---|---:|---:|"
    counts = Counter(record.outcome for record in before.values()), Counter(one.outcome for one in after.values())
    for outcome in Outcome:
        if any(count[outcome] for count in counts):
            yield _row([outcome.value, *(str(count[outcome]) for count in counts)])
    changed = [key for key in dict.fromkeys([*before, *after]) if _ending(before.get(key)) != _ending(after.get(key))]
    yield ""
    if not changed:
        yield "Every check ended as in the old release."
        return
    yield _row(["case", "check", "old", "new", "message"])
    yield "|---|---|---|---|---|"
    for key in changed[:_MOST]:
        case, suite, check = key
        told = next((one[key] for one in (after, before) if key in one and one[key].message), None)
        message = told.message.splitlines()[0][:200] if told else ""
        words = [_ending(before.get(key)), _ending(after.get(key)), _code(message)]
        yield _row([_code(case or "(no graph)"), _code(f"{suite}/{check}"), *words])
    if len(changed) > _MOST:
        yield ""
        yield f"… and {len(changed) - _MOST:,} more checks."


def figure_lines(old: Sequence[RunFile], new: Sequence[RunFile]) -> Iterator[str]:
    """A table for each kind of figure: of a case the worst over its checks, of repeats the median."""
    sides = _figures(old), _figures(new)
    on_target = {name for file in (*old, *new) for record in file.records for name in record.metrics}
    cases = [case for case in dict.fromkeys(case for side in sides for case in side) if case]
    for table in _tables(name for side in sides for figures in side.values() for name in figures if name in on_target):
        names = [name for name in table.names if any(name in side.get(case, {}) for side in sides for case in cases)]
        if not names:
            continue
        yield f"### {table.heading}"
        yield ""
        if table.note:
            yield table.note
            yield ""
        yield _row(["case", *(_heading(name) for name in names)])
        yield f"|---|{len(names) * '---:|'}"
        for case in cases:
            before, after = (side.get(case, {}) for side in sides)
            yield _row([_code(case), *(_cell(before.get(name), after.get(name), unit_of(name)) for name in names)])
        yield ""


def price_lines(prices: Sequence[OnePrice], old: str, new: str) -> Iterator[str]:
    """A table of both releases' code by the new one's estimator; *old* and *new* are the releases."""
    yield _row(["case", f"{old} (ms)", f"{old}'s code by {new} (ms)", f"{new} (ms)", "what changed"])
    yield "|---|---:|---:|---:|---|"
    for one in prices:
        own, priced, after = (None if n is None else n / 1e6 for n in (one.own_cycles, one.old_cycles, one.new_cycles))
        own_words, priced_words, after_words = (figure_words(value, "ms") for value in (own, priced, after))
        if priced is not None and after is not None:
            after_words += _change(priced, after) if one.old_cycles != one.new_cycles else ", the same"
        yield _row([_code(one.case), own_words, priced_words, after_words, one.words])


def _tables(on_target: Iterable[str]) -> tuple[_Table, ...]:
    measured = tuple(name for name in dict.fromkeys(on_target) if name not in _DISTANCE)
    return (
        _Table(heading="Distance from the reference", note="", names=_DISTANCE),
        _Table(
            heading="Speed, predicted",
            note="For one call, each by its own release's cycle profile: a change can be the estimator's alone. "
            "Below, where there is one price for both, it stands which of the two changed.",
            names=_PREDICTED,
        ),
        _Table(heading="The program", note="Exact, whatever the release; for one call.", names=_PROGRAM + _SIZE),
        _Table(heading="Measured on the board", note="", names=measured),
        _Table(heading="The compile", note="On the machine that compiled, and noisy.", names=_COMPILE),
    )


def _figures(files: Sequence[RunFile]) -> dict[str, dict[str, float]]:
    """By case and name."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for file in files:
        by_case: dict[str, list[Record]] = defaultdict(list)
        for record in file.records:
            by_case[record.case].append(record)
        for case, records in by_case.items():
            for name, value in _of_case(records):
                values[case, name].append(value)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (case, name), several in values.items():
        broken = any(math.isnan(value) for value in several)
        found[case][name] = math.nan if broken else statistics.median(several)
    return found


def _of_case(records: Sequence[Record]) -> Iterator[tuple[str, float]]:
    told: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for name, value in record.metrics.items():
            if measured_kind(name) is Kind.MEASURED and name not in _NO_FIGURES:
                told[name].append(math.nan if value is None else value)
        for name, number in [*record.predicted.items(), *record.compiled.items()]:
            told[name].append(number)
    for name, values in told.items():
        worst: Callable[[Iterable[float]], float] = min if name in _HIGHER_IS_BETTER else max
        yield name, math.nan if any(map(math.isnan, values)) else worst(values)


def _outcomes(files: Sequence[RunFile]) -> dict[Check, Record]:
    found: dict[Check, Record] = {}
    for record in (record for file in files for record in file.records):
        key = record.case, record.suite, record.check
        if key not in found or _WORSE.index(record.outcome) > _WORSE.index(found[key].outcome):
            found[key] = record
    return found


def _ending(record: Record | None) -> str:
    if record is None:
        return "not there"
    return record.outcome.value + (f" at {record.stage.value}" if record.stage else "")


def _cell(old: float | None, new: float | None, unit: str) -> str:
    words = [figure_words(value, unit) or "none" for value in (old, new)]
    if old is None or new is None or math.isnan(old) or math.isnan(new):
        return "" if old is None and new is None else " → ".join(words)
    if old == new:
        return f"{words[0]}, the same"
    return f"{' → '.join(words)}{_change(old, new)}"


def _change(old: float, new: float) -> str:
    """In per cent; from and to nothing there is none."""
    if old <= 0 or new < 0:
        return ""
    percent = 100 * (new / old - 1)
    return f" ({percent:+.1f} %)" if abs(percent) >= 0.05 else " (±0.0 %)"


def _heading(name: str) -> str:
    unit = unit_of(name)
    plain = name.removesuffix(f"_{unit}").removesuffix("_seconds").replace("_", " ")
    for word, written in _WRITTEN.items():
        plain = plain.replace(word, written)
    return f"{plain} ({unit})" if unit and unit not in {"share", "count"} else plain


def _code(text: str) -> str:
    plain = " ".join(text.replace("`", "'").split())
    return f"`{plain}`" if plain else ""


def _row(cells: Iterable[str]) -> str:
    """A line of a table, where even in a code span a bar would end the cell."""
    return f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |"
