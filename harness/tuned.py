"""The best options that were found for cases, kept in ``suites/tuned.toml``."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from compile.options import Option  # noqa: TC001 - msgspec reads the annotations at run time

TUNED = Path(__file__).parent.parent / "suites" / "tuned.toml"

_HEADING = """\
# The compiler options that `rwkv-tpu tune CASE --record` found best: the fewest predicted cycles among those whose
# bmodel passes parity on the simulator. `judged_on` is the checkpoint that was run there: the one that ships with
# the project, where the case's own is too large. No options: none that was tried beats the flags that every graph gets.
"""


class TunedError(ValueError):
    """The file of tuned cases cannot be read; the message names it."""


class Tuned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The best options of a case, for checkpoints of one size and one release of the compiler."""

    case: str
    size: str
    toolchain: str
    options: tuple[Option, ...]
    predicted_cycles: int
    judged_on: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What it was found for."""
        return self.case, self.size, self.toolchain


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tuned: tuple[Tuned, ...] = ()


def read_tuned(path: Path = TUNED) -> tuple[Tuned, ...]:
    """What is known; nothing where there is no file yet.

    Raises:
        TunedError: the file is not one of tuned cases.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=_File).tuned
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.DecodeError) as error:
        raise TunedError(
            f"{path}: {error}; put it right, or remove it: `rwkv-tpu tune --record` makes a new one"
        ) from error


def keep_tuned(found: Tuned, path: Path = TUNED) -> None:
    """Put what was found in the place of what the file says of the same case, size and release; the others stay."""
    every = {one.key: one for one in read_tuned(path)} | {found.key: found}
    whole = path.with_suffix(".new")
    whole.write_text(_HEADING + "".join(_table(every[key]) for key in sorted(every)))
    whole.replace(path)


def _table(one: Tuned) -> str:
    # A string or a list of strings is written in TOML as it is in JSON.
    rows = "".join(f"{name} = {json.dumps(value)}\n" for name, value in msgspec.to_builtins(one).items())
    return f"\n[[tuned]]\n{rows}"
