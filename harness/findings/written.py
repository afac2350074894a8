"""The files of ``docs/findings/``: what each says of itself, checked on reading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from harness.ops.press import ARROWS
from reports.schema import Stage  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Mapping

FINDINGS = Path(__file__).parent.parent.parent / "docs" / "findings"
NOT_RUN = "not run"
"""The outcome at an arrow that was not computed yet."""

_FENCE = "+++\n"
_SECTIONS = ("## Expected and got", "## To see it", "## Until it is mended")


class FindingError(ValueError):
    """A file of ``docs/findings/`` lacks something: names the file and what."""


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The head of a finding's file.

    Attributes:
        title: the fault in a sentence.
        stage: where it is born; ``transform`` where TOP is wrong, ``lower`` TPU, ``codegen`` the bmodel.
        silent: whether everything says success.
        releases: for each release of TPU-MLIR that was tried, the outcome at each arrow: ``right``, ``wrong`` or the
            stage at which the way ended; ``not run`` where it was not computed yet. Empty where no small graph shows
            the fault; then ``seen`` says where it was.
        seen: releases, in words, of faults that have no reproducer.
        harness: how the suites show it.
    """

    title: str
    stage: Stage
    silent: bool
    releases: dict[str, dict[str, str]] = msgspec.field(default_factory=dict)
    seen: str = ""
    harness: str


@dataclass(frozen=True, slots=True)
class Written:
    """A finding's file."""

    name: str
    about: About
    text: str

    @property
    def has_reproducer(self) -> bool:
        """Whether ``rwkv-tpu finding NAME`` shows it."""
        return bool(self.about.releases)


def read_findings(folder: Path = FINDINGS) -> Mapping[str, Written]:
    """Read all files but the index.

    Raises:
        FindingError: one lacks its head, a section or an arrow.
    """
    paths = [path for path in sorted(folder.glob("*.md")) if path.name != "README.md"]
    return {path.stem: _read(path) for path in paths}


def _read(path: Path) -> Written:
    head, fence, text = path.read_text().removeprefix(_FENCE).partition(_FENCE)
    if not fence:
        raise FindingError(f"{path}: should begin with TOML between lines of +++")
    try:
        about = msgspec.toml.decode(head, type=About)
    except msgspec.DecodeError as error:
        raise FindingError(f"{path}: {error}") from error
    if missing := [section for section in _SECTIONS if section not in text]:
        raise FindingError(f"{path}: has no section {missing[0]!r}")
    if bool(about.releases) == bool(about.seen):
        raise FindingError(f"{path}: should have either releases, from a reproducer, or seen, without one")
    for release, outcome in about.releases.items():
        if set(outcome) != set(ARROWS):
            raise FindingError(f"{path}: release {release} should have an outcome for each of {', '.join(ARROWS)}")
    return Written(path.stem, about, text)
