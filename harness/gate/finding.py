"""What a gate finds, and the exit code that follows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Kind(Enum):
    """What a finding means. In the order of precedence for the exit code."""

    REGRESSION = "regression"
    NOT_COMPARABLE = "nothing measured or not comparable"
    INFRA = "device or infrastructure"
    STALE = "stale expectation"
    IMPROVED = "improved"
    SHOWN = "shown, no verdict"

    @property
    def exit_code(self) -> int:
        """The code of a gate in which this holds and nothing before it; 0 for what is no fault."""
        return _CODES.get(self, 0)


_CODES = {Kind.REGRESSION: 1, Kind.NOT_COMPARABLE: 3, Kind.INFRA: 4, Kind.STALE: 2}


class Key(NamedTuple):
    """One check of one case: what has the same key on both sides is compared."""

    case: str
    suite: str
    check: str


NO_KEY = Key("", "", "")
"""Of what concerns a side as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to be told. Texts are empty where there is nothing to tell."""

    kind: Kind
    key: Key = NO_KEY
    metric: str = ""
    base: str = ""
    new: str = ""
    limit: str = ""
    note: str = ""


def exit_code(findings: Iterable[Finding]) -> int:
    """Return the exit code: of all that holds, the first in precedence."""
    kinds = {finding.kind for finding in findings}
    return next((kind.exit_code for kind in Kind if kind in kinds and kind.exit_code), 0)
