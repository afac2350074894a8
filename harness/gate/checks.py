"""Check by check, metric by metric: each value of BASE beside that of NEW, under its rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from harness.gate import words
from harness.gate.chance import ChanceTest, Launches
from harness.gate.details import COMPILED, PREDICTED
from harness.gate.exact import is_better, is_worse, worst
from harness.gate.finding import Finding, Key, Kind
from harness.gate.from_reference import document_test
from harness.gate.noisy import can_tell
from harness.gate.outcomes import OUTCOME, is_measured, judge_outcomes, stale_expectation
from harness.gate.paired import LOG_LIKELIHOOD
from harness.gate.rules import Better, How
from harness.gate.sides import worst_outcome
from reports.schema import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.gate.rules import Rule, Rules
    from harness.gate.sides import Side
    from reports.schema import Record

_BESIDE = ("tiu_instructions", "gdma_instructions", "ddr_read_bytes", "ddr_write_bytes")
_Values = dict[str, float | int | None]


@dataclass(kw_only=True)
class Comparison:
    """What is found on the way through the records.

    Attributes:
        same_release: whether one compiler release made both sides.
        same_known: whether one list of expected failures judged both.
        findings: so far; tests are not judged yet.
        launches: noisy metrics, for tests in which chance has a part.
        documents: log-likelihoods of documents that a record sums up, for the same.
        checks: how many were measured on both sides.
        values: how many values of metrics were compared under a verdict.
    """

    rules: Rules
    same_release: bool
    same_known: bool = True
    findings: list[Finding] = field(default_factory=list)
    launches: list[Launches] = field(default_factory=list)
    documents: list[ChanceTest] = field(default_factory=list)
    checks: int = 0
    values: int = 0
    _unknown: set[str] = field(default_factory=set)
    _told: set[tuple[Kind, str, str, str, str]] = field(default_factory=set)  # of compiles: once a case is enough
    _tested: set[tuple[str, str]] = field(default_factory=set)  # the same, of noisy figures

    def checks_of(self, base: Side, new: Side) -> None:
        """Compare check by check."""
        old, young = _checks(base), _checks(new)
        renamed = _same_bmodels(old, young)
        for key in dict.fromkeys([*old, *young]):
            if self._is_ignored(key):
                continue
            b, n = old.get(key, []), young.get(key, [])
            if len(b) < len(base.launches) or len(n) < len(new.launches):
                self._incomplete(key, b, n, (len(base.launches), len(new.launches)), renamed.get(key.case, ""))
            if b and n:
                self._check(key, b, n)

    def stale_rules(self, base: Side, new: Side) -> None:
        """Report rules that fit nothing."""
        cases = {key.case for side in (base, new) for launch in side.launches for key in launch.checks}
        for rule in self.rules.unmatched(cases):
            note = f"the rule of {', '.join(rule.metrics)} for cases {rule.cases!r} fits none of the cases: remove it"
            self.findings.append(Finding(kind=Kind.STALE, note=note))

    def _is_ignored(self, key: Key) -> bool:
        rule = self.rules.rule_for(OUTCOME, key.case)
        return rule is not None and rule.compare is How.IGNORED

    def _incomplete(
        self, key: Key, base: Sequence[Record], new: Sequence[Record], launches: tuple[int, int], renamed: str
    ) -> None:
        """A check that is not everywhere."""
        note = "vanished" if not new else "the baseline never measured it" if not base else "not in every run"
        self._add(
            Kind.NOT_COMPARABLE,
            key,
            OUTCOME,
            _presence(base, launches[0]),
            _presence(new, launches[1]),
            note=note + (f"; {renamed} is the same bmodel: renamed?" if renamed else ""),
        )
        sick = [record for record in (*base, *new) if record.outcome is Outcome.INFRA]
        if sick and not (base and new):  # where both are there, their outcomes are compared
            self._add(Kind.INFRA, key, OUTCOME, "", "", note=sick[0].message.partition("\n")[0])

    def _check(self, key: Key, base: Sequence[Record], new: Sequence[Record]) -> None:
        before, after = worst_outcome(base), worst_outcome(new)
        finding = judge_outcomes(key, before, after, same_known=self.same_known)
        stale = stale_expectation(key, before, new)
        if finding is not None and (stale is None or finding.kind.exit_code not in {0, stale.kind.exit_code}):
            self.findings.append(finding)
        if stale is not None:
            self.findings.append(stale)
        if not is_measured(before, after):
            return
        self.checks += 1
        pair = before.outcome, after.outcome
        b, n = [_values(one) for one in base], [_values(one) for one in new]
        if pair == (Outcome.PASSED, Outcome.PASSED):
            self._metrics(key, dict.fromkeys(name for values in (*b, *n) for name in values), b, n)
        elif pair[0] is Outcome.PASSED or pair == (Outcome.EXPECTED_FAILURE, Outcome.EXPECTED_FAILURE):
            # A check that failed need not have come to all of its metrics: its outcome says so already.
            self._metrics(key, [name for name in b[0] if all(name in values for values in (*b, *n))], b, n)

    def _metrics(self, key: Key, names: Iterable[str], base: Sequence[_Values], new: Sequence[_Values]) -> None:
        for name in names:
            rule = self.rules.rule_for(name, key.case)
            if rule is None:
                self._no_rule(name)
            elif rule.compare is not How.IGNORED:
                b, n = _numbers(base, name), _numbers(new, name)
                if rule.compare is How.SHOWN:
                    self._show(key, name, b, n)
                elif b is not None and n is not None:
                    self._compare(key, name, rule, b, n, (base[0], new[0]))
                else:
                    self._not_finite(key, name, base, new)

    def _compare(
        self,
        key: Key,
        name: str,
        rule: Rule,
        base: Sequence[float],
        new: Sequence[float],
        beside: tuple[_Values, _Values],
    ) -> None:
        """Compare values that are all there and finite."""
        if rule.within_release and not self.same_release:
            self._estimates(key, name, base, new, beside)
            return
        if rule.compare is How.NOISY:
            self._launches(key, name, rule, base, new)
            return
        if rule.compare is How.PAIRED:
            self._sums(key, name, rule, (worst(base, rule.better), worst(new, rule.better)), beside)
            return
        self.values += 1
        if base == new and rule.compare is How.EXACT:
            return  # nearly always: everything behind this line is for what changed
        if rule.compare is How.SAME:
            if len({*base, *new}) > 1:
                low, high = min(*base, *new), max(*base, *new)
                b, n = (base[0], new[0]) if base[0] != new[0] else (low, high)
                self._change(Kind.NOT_COMPARABLE, key, name, b, n, limit="the same", note="not asked the same")
        else:
            b, n = worst(base, rule.better), worst(new, rule.better)
            if is_worse(b, n, rule):
                self._change(Kind.REGRESSION, key, name, b, n, limit=rule.limit)
            elif is_better(b, n, rule):
                self._change(Kind.IMPROVED, key, name, b, n, limit=rule.limit)

    def _launches(self, key: Key, name: str, rule: Rule, base: Sequence[float], new: Sequence[float]) -> None:
        if name.startswith(COMPILED):
            if (key.case, name) in self._tested:
                return
            self._tested.add((key.case, name))
            # Runs that found the bmodel in the cache tell of one and the same compile: to the last digit.
            base, new = list(dict.fromkeys(base)), list(dict.fromkeys(new))
        if min(*base, *new) <= 0:
            b, n = words.two_numbers(min(base), min(new))
            self._add(Kind.NOT_COMPARABLE, key, name, b, n, note="should be above zero in every launch")
        elif rule.repeats_needed or can_tell(len(base), len(new), self.rules.family_alarm_rate):
            self.values += 1
            self.launches.append(Launches(key, name, rule, base, new))
        elif not 1 / (rule.ratio or 1) <= median(new) / median(base) <= (rule.ratio or 1):
            note = f"noisy, and measured {len(base)} and {len(new)} times: no verdict"
            self._change(Kind.SHOWN, key, name, median(base), median(new), note=note)

    def _sums(
        self, key: Key, name: str, rule: Rule, values: tuple[float, float], beside: tuple[_Values, _Values]
    ) -> None:
        """A metric of documents in a record, which has no documents to pair: only their sums and a standard error."""
        if name != LOG_LIKELIHOOD:
            note = "the record holds no documents to pair: no verdict, the log-likelihood has it"
            if values[0] != values[1]:
                self._change(Kind.SHOWN, key, name, *values, note=note)
            return
        test = document_test(key, rule, values, beside)
        if test is not None:
            self.values += 1
            self.documents.append(test)
        else:
            note = "the record has no standard error: score more than one document"
            self._change(Kind.NOT_COMPARABLE, key, name, *values, note=note)

    def _estimates(
        self, key: Key, name: str, base: Sequence[float], new: Sequence[float], beside: tuple[_Values, _Values]
    ) -> None:
        """Two releases' estimates: what the program does stands beside, and is judged by itself."""
        b, n = worst(base, Better.LOWER), worst(new, Better.LOWER)
        if b == n:
            return
        both = [(one, beside[0].get(one), beside[1].get(one)) for one in _BESIDE]
        told = [f"{one} {words.change(x, y)}" for one, x, y in both if x is not None and y is not None]
        note = f"{words.change(b, n)} by two releases' estimators: no verdict; beside it {', '.join(told) or 'nothing'}"
        self._add(Kind.SHOWN, key, name, *words.two_numbers(b, n), note=note)

    def _show(self, key: Key, name: str, base: Sequence[float] | None, new: Sequence[float] | None) -> None:
        if base is not None and new is not None and sorted(base) != sorted(new):
            self._change(Kind.SHOWN, key, name, median(base), median(new))

    def _not_finite(self, key: Key, name: str, base: Sequence[_Values], new: Sequence[_Values]) -> None:
        """A value that is missing, or null, somewhere."""
        b, n = _state(base, name), _state(new, name)
        if b == _THERE and n == _NAN:
            self._add(Kind.REGRESSION, key, name, _median_words(base, name), n, limit="finite")
        else:
            note = "the baseline has no finite value" if b != _THERE else "not measured"
            self._add(Kind.NOT_COMPARABLE, key, name, b, n, note=note)

    def _no_rule(self, name: str) -> None:
        if name not in self._unknown:
            self._unknown.add(name)
            note = "no rule says how to compare it: add one, in a file for --rules"
            self.findings.append(Finding(kind=Kind.STALE, metric=name, note=note))

    def _change(
        self, kind: Kind, key: Key, name: str, base: float, new: float, *, limit: str = "", note: str = ""
    ) -> None:
        told = "; ".join(filter(None, [words.change(base, new), note]))
        self._add(kind, key, name, *words.two_numbers(base, new), limit=limit, note=told)

    def _add(self, kind: Kind, key: Key, name: str, base: str, new: str, *, limit: str = "", note: str = "") -> None:
        if name.startswith((*PREDICTED, *COMPILED)):
            told = (kind, key.case, name, base, new)
            if told in self._told:
                return
            self._told.add(told)
        self.findings.append(Finding(kind=kind, key=key, metric=name, base=base, new=new, limit=limit, note=note))


_THERE, _NAN, _ABSENT = "there", "NaN or infinite", "absent"


def _checks(side: Side) -> dict[Key, list[Record]]:
    """Every check with its record of each launch that has one."""
    found: dict[Key, list[Record]] = {}
    for launch in side.launches:
        for key, record in launch.checks.items():
            found.setdefault(key, []).append(record)
    return found


def _values(record: Record) -> _Values:
    return {**record.metrics, **record.predicted, **record.compiled}


def _numbers(launches: Sequence[_Values], name: str) -> list[float] | None:
    """Return one value a launch; None where one is missing or not finite."""
    found = []
    for values in launches:
        value = values.get(name)
        if value is None:
            return None
        found.append(value)
    return found


def _state(launches: Sequence[_Values], name: str) -> str:
    """Tell the worst of being there, being null and being absent; null first, as NaN fails first."""
    if any(name in values and values[name] is None for values in launches):
        return _NAN
    missing = sum(name not in values for values in launches)
    if not missing:
        return _THERE
    return _ABSENT if missing == len(launches) else f"{_ABSENT} in {missing} of {len(launches)} runs"


def _median_words(launches: Sequence[_Values], name: str) -> str:
    return words.number(median(value for values in launches if (value := values[name]) is not None))


def _presence(records: Sequence[Record], launches: int) -> str:
    if not records:
        return _ABSENT
    outcome = worst_outcome(records).outcome.value
    return outcome if len(records) == launches else f"{outcome}, in {len(records)} of {launches} runs"


def _same_bmodels(old: dict[Key, list[Record]], young: dict[Key, list[Record]]) -> dict[str, str]:
    """Cases that are on one side only, with the case of the other side that has the same bmodel."""
    cases_old, cases_young = {key.case for key in old}, {key.case for key in young}
    vanished = {r[0].bmodel_sha256: k.case for k, r in old.items() if k.case not in cases_young}
    appeared = {r[0].bmodel_sha256: k.case for k, r in young.items() if k.case not in cases_old}
    shared = {sha256 for sha256 in vanished if sha256 and sha256 in appeared}
    found = {vanished[sha256]: appeared[sha256] for sha256 in shared}
    return found | {after: before for before, after in found.items()}
