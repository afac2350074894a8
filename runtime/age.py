"""Whether a bmodel was made by a compiler much newer than the runtime that is to load it. Runs on Python 3.8.

Neither says what the other needs: a bmodel names its compiler's release and date, libbmrt the version 1.0.0 whatever
its age, and the day when it was built. So days are all that can be compared.
"""

from __future__ import annotations

import re
from datetime import date

TOO_MANY_DAYS = 120
"""A release comes with a runtime that was built some weeks before it (19 days in 1.30.2); half-yearly ones are more."""

_COMPILER = re.compile(r"-(20\d\d)(\d\d)(\d\d)$")
_RUNTIME = re.compile(r"compiled on (?:(20\d\d)(\d\d)(\d\d)\b|([A-Z][a-z]{2}) +(\d{1,2}) (20\d\d)\b)")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def compiler_day(compiler: str) -> date | None:
    """The day in a bmodel's version of its compiler, such as 2.2+v1.30.2-20260831; None where there is none."""
    match = _COMPILER.search(compiler)
    return None if match is None else _day(*map(int, match.groups()))


def runtime_day(runtime: str) -> date | None:
    """The day on which libbmrt says that it was built, in either of the forms that it uses; None where it does not."""
    match = _RUNTIME.search(runtime)
    if match is None:
        return None
    if match[1]:
        return _day(int(match[1]), int(match[2]), int(match[3]))
    return _day(int(match[6]), _MONTHS.index(match[4]) + 1, int(match[5])) if match[4] in _MONTHS else None


def remark(compiler: str, runtime: str) -> str | None:
    """A warning where the compiler is much newer than the runtime; None where it is not, or where nobody can tell."""
    made, built = compiler_day(compiler), runtime_day(runtime)
    if made is None or built is None or (made - built).days <= TOO_MANY_DAYS:
        return None
    return (
        f"compiler {compiler} is {(made - built).days} days newer than the runtime ({runtime}): should anything fail "
        "or give wrong numbers, update libsophon first"
    )


def _day(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None
