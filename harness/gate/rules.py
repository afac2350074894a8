"""What is compared how, as data: ``suites/gate.toml`` ships, rules of a user's file stand before it."""

from __future__ import annotations

import math
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

RULES = Path(__file__).parents[2] / "suites" / "gate.toml"


class RulesError(ValueError):
    """A file of rules that cannot be had or does not make sense: names the file and what to do."""


class How(Enum):
    """How a metric of one side is compared with the other's."""

    EXACT = "exact"  # one value decides; the limit is a tolerance, not a matter of chance
    NOISY = "noisy"  # repeated launches decide
    PAIRED = "paired"  # document by document
    SAME = "same"  # a difference means that the sides were asked different things
    SHOWN = "shown"  # no verdict, but a change is listed
    IGNORED = "ignored"  # as if it were not there


class Better(Enum):
    """The direction of a metric."""

    LOWER = "lower"
    HIGHER = "higher"


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the metrics of some names are judged in some cases. All patterns are those of file names.

    Attributes:
        metrics: patterns of names; ``outcome`` is a check's outcome.
        cases: a pattern of case ids; ``*`` also takes what concerns no case.
        compare: how.
        better: the direction.
        ratio: times as bad as the baseline is still in order; at least 1. With NOISY the floor of a change.
        difference: so much worse than the baseline is still in order; at least 0, in the metric's unit. Where both
            limits are given, a change must be beyond both to fail; where none is, any change for the worse fails.
        repeats_needed: of a noisy metric, whether too few launches are a fault; where not, a change is shown then.
        within_release: compare only where both sides were compiled by the same release, show otherwise.
    """

    metrics: tuple[str, ...]
    cases: str = "*"
    compare: How = How.EXACT
    better: Better = Better.LOWER
    ratio: float | None = None
    difference: float | None = None
    repeats_needed: bool = True
    within_release: bool = False

    def __post_init__(self) -> None:
        """See that the limits make sense.

        Raises:
            ValueError: they do not; says which.
        """
        if not self.metrics:
            raise ValueError("a rule without metrics: name at least one")
        if self.ratio is not None and not 1 <= self.ratio < math.inf:
            raise ValueError(f"ratio is {self.ratio}, but should be at least 1 and finite, whatever is better")
        if self.difference is not None and not 0 <= self.difference < math.inf:
            raise ValueError(f"difference is {self.difference}, but should be at least 0 and finite")
        if self.compare is How.NOISY and (self.ratio is None or self.difference is not None):
            raise ValueError("a noisy metric has a ratio, the floor of a change, and no difference")
        if not self.repeats_needed and self.compare is not How.NOISY:
            raise ValueError("repeats_needed is a matter of noisy metrics: every other one is judged from one run")
        if self.compare is How.PAIRED and (self.difference is None or self.ratio is not None):
            raise ValueError("a paired metric has a difference, and no ratio")

    @property
    def limit(self) -> str:
        """The limit in words, such as ``x1.25 and +1e-06``."""
        sign = "+" if self.better is Better.LOWER else "-"
        ratio = [] if self.ratio is None else [f"{'x' if self.better is Better.LOWER else '/'}{self.ratio:g}"]
        difference = [] if self.difference is None else [f"{sign}{self.difference:g}"]
        return " and ".join(ratio + difference) or "no worse"


class _RulesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    family_alarm_rate: float | None = None
    compared: tuple[str, ...] | None = None
    rule: tuple[Rule, ...] = ()


class Rules:
    """Rules in their order: the first that matches decides.

    Attributes:
        family_alarm_rate: how often all tests of one gate together may see a change where there is none.
        compared: parts of the manifest of which one may differ: it is then the thing compared.
    """

    def __init__(self, rules: tuple[Rule, ...], *, family_alarm_rate: float, compared: tuple[str, ...]) -> None:
        self.family_alarm_rate = family_alarm_rate
        self.compared = compared
        self._rules = rules
        self._by_metric: dict[str, list[Rule]] = {}

    def rule_for(self, metric: str, case: str) -> Rule | None:
        """Find the first rule that matches; None where none does."""
        candidates = self._by_metric.get(metric)
        if candidates is None:
            candidates = [rule for rule in self._rules if any(fnmatchcase(metric, name) for name in rule.metrics)]
            self._by_metric[metric] = candidates
        for rule in candidates:
            if rule.cases == "*" or fnmatchcase(case, rule.cases):
                return rule
        return None

    def unmatched(self, cases: set[str]) -> list[Rule]:
        """Rules that name cases, of which there is none."""
        return [
            rule
            for rule in self._rules
            if rule.cases != "*" and not any(fnmatchcase(case, rule.cases) for case in cases)
        ]


def load_rules(own: Path | None = None, shipped: Path = RULES) -> Rules:
    """Read the rules that ship, with those of *own* before them.

    Raises:
        RulesError: a file is not there, or is none of rules.
    """
    defaults, first = _read(shipped), _RulesFile() if own is None else _read(own)
    rate = defaults.family_alarm_rate if first.family_alarm_rate is None else first.family_alarm_rate
    compared = defaults.compared if first.compared is None else first.compared
    if rate is None or not 0 < rate < 1 or compared is None:
        raise RulesError(f"{own or shipped}: family_alarm_rate is {rate}, but should be above 0 and below 1")
    return Rules(first.rule + defaults.rule, family_alarm_rate=rate, compared=compared)


def _read(path: Path) -> _RulesFile:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=_RulesFile)
    except OSError as error:
        raise RulesError(f"{path}: cannot be read: {error.strerror}; name a TOML file of rules") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RulesError(f"{path}: {error}; docs/gate.md says what a rule looks like") from error
