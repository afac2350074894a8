"""Which TPU-MLIR releases there are, and which of them lie between two."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

from compile.toolchain import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LISTED = re.compile(r"^Available versions: (.+)$", re.MULTILINE)
_TIMEOUT_S = 300


class ReleasesError(RuntimeError):
    """The releases cannot be told; says what to do."""


class OrderError(ReleasesError):
    """Two releases cannot be put in the order in which they were named."""


def published(pip_args: Sequence[str] = ()) -> tuple[str, ...]:
    """All releases that pip can find for the compiler's Python, the oldest first.

    Args:
        pip_args: more options for pip, such as ``--index-url=URL``.

    Raises:
        ReleasesError: pip is not there, or finds none.
    """
    pip = [sys.executable, "-I", "-m", "pip", "index", "versions", "tpu_mlir", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*pip, "--python-version=3.10", "--only-binary=:all:", *pip_args],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReleasesError(f"pip cannot be asked for the releases: {error}; name them with --releases") from error
    listed = _LISTED.search(done.stdout)
    if done.returncode != 0 or listed is None:
        said = "\n".join((done.stderr or done.stdout).splitlines()[-5:])
        raise ReleasesError(
            f"pip does not tell the releases of tpu_mlir; it said:\n{said}\nCheck network and proxy, or name the "
            "releases with --releases"
        )
    return tuple(sorted((one.strip() for one in listed[1].split(",")), key=in_order))


def between(old: str, new: str, releases: Iterable[str]) -> tuple[str, ...]:
    """*old*, the *releases* that came after it and before *new*, and *new*; each once, the oldest first.

    Raises:
        OrderError: *new* did not come after *old*.
    """
    if in_order(old) >= in_order(new):
        raise OrderError(f"{new} should be a later release than {old}: name the older one first")
    inside = {one for one in releases if in_order(old) < in_order(one) < in_order(new)}
    return (old, *sorted(inside, key=in_order), new)


def in_order(version: str) -> tuple[int, ...]:
    """What versions are sorted by: their numbers.

    Raises:
        OrderError: there is none in it.
    """
    numbers = [int(number) for number in re.findall("[0-9]+", version)]
    if not numbers:
        raise OrderError(f"{version!r} is no version of tpu_mlir; expected one like 1.30.2")
    while numbers[-1] == 0 and len(numbers) > 1:  # 1.27 and 1.27.0 are one release
        numbers.pop()
    return tuple(numbers)
