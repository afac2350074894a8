"""Accuracy on LAMBADA, document by document: what makes a passage hard is the same on both sides and cancels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scipy.special import bdtr

from harness.gate import words
from harness.gate.chance import ChanceTest
from harness.gate.comparability import differences, is_allowed
from harness.gate.finding import Finding, Key, Kind
from harness.gate.sides import LAMBADA_SUITE
from harness.lambada.statistics import NotFiniteError, compare, summarise

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from harness.gate.rules import Rules
    from harness.gate.sides import Lambada
    from harness.lambada.statistics import Comparison

LOG_LIKELIHOOD = "lambada_log_likelihood"
ACCURACY = "lambada_accuracy"
_COMPILER = ", TPU-MLIR"  # behind it a description names the release, which is often the thing compared


def compare_lambada(
    base: Sequence[Lambada], new: Sequence[Lambada], rules: Rules, *, allow: Collection[str], compared: str
) -> tuple[list[ChanceTest], list[Finding]]:
    """Pair results of the same target on the same documents.

    Where *compared* is the compiler or the harness, bmodels and libraries may differ.
    """
    tests: list[ChanceTest] = []
    findings: list[Finding] = []
    old, young = _by_target(base, findings), _by_target(new, findings)
    for name in dict.fromkeys([*old, *young]):
        key = Key("", LAMBADA_SUITE, name)
        if name not in old or name not in young:
            there, absent = ("vanished", "new") if name in old else ("the baseline never measured it", "base")
            findings.append(Finding(kind=Kind.NOT_COMPARABLE, key=key, note=there, **{absent: "absent"}))
            continue
        refused = _refused(old[name], young[name], key, allow=allow, compared=compared)
        findings += refused
        if not refused:
            _compare(old[name], young[name], key, rules, tests, findings)
    return tests, findings


def _by_target(side: Sequence[Lambada], findings: list[Finding]) -> dict[str, Lambada]:
    found: dict[str, Lambada] = {}
    for one in side:
        name = one.name
        if name in found:
            note = f"{found[name].path} and {one.path} are both of {name}: leave one"
            findings.append(Finding(kind=Kind.NOT_COMPARABLE, key=Key("", LAMBADA_SUITE, name), note=note))
        found[name] = one
    return found


def _refused(base: Lambada, new: Lambada, key: Key, *, allow: Collection[str], compared: str) -> list[Finding]:
    asked = differences(_question(base), _question(new))
    made = () if compared else differences(_maker(base), _maker(new))
    return [
        Finding(
            kind=Kind.NOT_COMPARABLE,
            key=key,
            metric=one.name,
            base=one.base,
            new=one.new,
            limit="the same",
            note=f"if that is meant, --allow {one.name}",
        )
        for one in (*asked, *made)
        if not is_allowed(one.name, allow)
    ]


def _question(one: Lambada) -> dict[str, str]:
    key = one.header.key
    return {
        "checkpoint.sha256": key.checkpoint_sha256,
        "checkpoint.codec": key.codec,
        "lambada.data_sha256": key.data_sha256,
        "lambada.protocol": str(key.protocol),
        "lambada.description": one.header.description.partition(_COMPILER)[0],
    }


def _maker(one: Lambada) -> dict[str, str]:
    return {f"lambada.{name}": value for name, value in one.header.key.target.items()}


def _compare(
    base: Lambada, new: Lambada, key: Key, rules: Rules, tests: list[ChanceTest], findings: list[Finding]
) -> None:
    old, young = ({result.id: result for result in one.results} for one in (base, new))
    shared = [name for name in old if name in young]
    if len(shared) < max(len(old), len(young)) or not shared:
        findings.append(
            Finding(
                kind=Kind.NOT_COMPARABLE,
                key=key,
                metric=LOG_LIKELIHOOD,
                base=f"{len(old)} documents",
                new=f"{len(young)} documents",
                limit="the same documents",
                note=f"{len(shared)} are shared: let both come to their end with one --limit",
            )
        )
        return
    first, second = [old[name] for name in shared], [young[name] for name in shared]
    try:
        summarise(first)
    except NotFiniteError as error:
        findings.append(
            Finding(kind=Kind.NOT_COMPARABLE, key=key, metric=LOG_LIKELIHOOD, base="not finite", note=str(error))
        )
        return
    try:
        found = compare(first, second)
    except NotFiniteError as error:
        findings.append(
            Finding(kind=Kind.REGRESSION, key=key, metric=LOG_LIKELIHOOD, new="not finite", note=str(error))
        )
        return
    _log_likelihood(found, summarise(first).mean_ll, summarise(second).mean_ll, key, rules, tests, findings)
    _accuracy(found, key, rules, tests)


def _log_likelihood(
    found: Comparison,
    base: float,
    new: float,
    key: Key,
    rules: Rules,
    tests: list[ChanceTest],
    findings: list[Finding],
) -> None:
    rule = rules.rule_for(LOG_LIKELIHOOD, key.case)
    if rule is None:
        return
    from_base, to_new = words.two_numbers(base, new)
    if found.p is None or found.interval is None:
        findings.append(
            Finding(
                kind=Kind.NOT_COMPARABLE,
                key=key,
                metric=LOG_LIKELIHOOD,
                base=from_base,
                new=to_new,
                note="one document has no standard error; score more",
            )
        )
        return
    floor = rule.difference or 0.0
    worse = found.mean_difference < 0
    low, high = found.interval
    tests.append(
        ChanceTest(
            key=key,
            metric=LOG_LIKELIHOOD,
            base=from_base,
            new=to_new,
            limit=rule.limit,
            note=f"{found.mean_difference:+.4g} nats a document, 95% interval {low:+.4g} to {high:+.4g}, N {found.n}",
            p_worse=found.p / 2 if worse else 1 - found.p / 2,
            p_better=1 - found.p / 2 if worse else found.p / 2,
            beyond_worse=found.mean_difference < -floor,
            beyond_better=found.mean_difference > floor,
        )
    )


def _accuracy(found: Comparison, key: Key, rules: Rules, tests: list[ChanceTest]) -> None:
    """McNemar's exact test, one-sided, where accuracy tells anything at all."""
    rule = rules.rule_for(ACCURACY, key.case)
    if rule is None or not found.accuracy_tells:
        return
    throws = found.only_first + found.only_second
    floor = rule.difference or 0.0
    lost = (found.only_first - found.only_second) / found.n
    tests.append(
        ChanceTest(
            key=key,
            metric=ACCURACY,
            base=f"{found.correct[0]} of {found.n} right",
            new=f"{found.correct[1]} of {found.n} right",
            limit=rule.limit,
            note=f"right: only BASE {found.only_first}, only NEW {found.only_second}",
            p_worse=float(bdtr(found.only_second, throws, 0.5)),
            p_better=float(bdtr(found.only_first, throws, 0.5)),
            beyond_worse=lost > floor,
            beyond_better=-lost > floor,
        )
    )
