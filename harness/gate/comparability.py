"""Whether two runs differ in the thing compared alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.gate.finding import Finding, Kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from harness.gate.sides import Launch, Side
    from reports.schema import Run

PARTS = (
    "target",
    "chip",
    "harness",
    "toolchain",
    "checkpoint",
    "grid",
    "port",
    "limits_sha256",
    "options",
    "data",
    "machine",
    "packages",
    "health",
    "runtime",
    "lambada",
)
"""The names that --allow takes, or one of them with a dot and an entry, such as ``machine.memory_bytes``."""

_OWN_PACKAGE = "rwkv-tpu-harness"  # its version stands in "harness"
_OWN_PARTS = {
    "device",
    "libsophon",
    "checkpoint",
    "codec",
    "grid",
    "toolchain",
    "bmodel",
    "onnx",
    "io",
    "known",
    "lambada",
}  # options told by other parts
_LIMITS_OF_WORK = {"stage-timeout"}  # it ends a compile, and says so there; what is measured does not depend on it
_YOUNG_PARTS = ("options", "data")  # which older runs do not have
_LASTING = {"driver", "firmware", "boot_loader", "tpu_clock_max", "memory_total"}  # other readings change by the second
_CMODEL = "cmodel"
_KNOWN = "data.known"  # each release has its own list of expected failures; each record says what was expected


@dataclass(frozen=True, slots=True)
class Difference:
    """An entry of the manifests that is not the same."""

    name: str
    base: str
    new: str

    @property
    def part(self) -> str:
        """What it is an entry of."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparability:
    """What two sides differ in.

    Attributes:
        compared: the part of the manifest that is the thing compared; empty where nothing of that kind differs.
        differences: all of them.
        refused: those for which the sides cannot be compared.
        same_release: whether one compiler release made both.
        same_known: whether both were judged by the same list of expected failures.
    """

    compared: str
    differences: tuple[Difference, ...]
    refused: tuple[Difference, ...]
    same_release: bool
    same_known: bool = True


def comparability(base: Side, new: Side, *, candidates: Sequence[str], allow: Collection[str]) -> Comparability:
    """See what two sides differ in; one of the *candidates* may, as the thing compared, and what is allowed by name."""
    if not base.launches or not new.launches:
        return Comparability(compared="", differences=(), refused=(), same_release=True)
    found = _differences(base.launches[0], new.launches[0])
    parts = {one.part for one in found}
    differing = [name for name in candidates if name in parts]
    unnamed = [name for name in differing if not any(one.partition(".")[0] == name for one in allow)]
    compared = (unnamed or differing)[0] if len(unnamed) == 1 or (differing and not unnamed) else ""
    accepted = {*allow, compared, _KNOWN}
    if new.launches[0].file.run.target == _CMODEL and "toolchain" in accepted:
        accepted.add("runtime")  # the simulator is a part of the compiler's wheel
    refused = tuple(one for one in found if not is_allowed(one.name, accepted))
    return Comparability(
        compared=compared,
        differences=found,
        refused=refused,
        same_release="toolchain" not in parts,
        same_known=all(one.name != _KNOWN for one in found),
    )


def within(side: Side, allow: Collection[str]) -> list[Finding]:
    """Report repeats of one side that are not of the same thing."""
    findings = []
    for launch in side.launches[1:]:
        for one in _differences(side.launches[0], launch):
            if not is_allowed(one.name, allow):
                note = f"{launch.path} is no repeat of {side.launches[0].path}"
                findings.append(
                    Finding(kind=Kind.NOT_COMPARABLE, metric=one.name, base=one.base, new=one.new, note=note)
                )
    return findings


def refusals(found: Comparability) -> list[Finding]:
    """Report what makes the sides not comparable; all packages together."""
    packages = [one for one in found.refused if one.part == "packages"]
    others = [one for one in found.refused if one.part != "packages"]
    entries = Counter(one.part for one in others)
    told = [(one.name, one.base, one.new, one.name if entries[one.part] == 1 else one.part) for one in others]
    if packages:
        base = ", ".join(f"{_package(one)} {one.base}" for one in packages)
        new = ", ".join(f"{_package(one)} {one.new}" for one in packages)
        told.append(("packages", base, new, "packages"))
    return [
        Finding(
            kind=Kind.NOT_COMPARABLE,
            metric=name,
            base=base,
            new=new,
            limit="the same",
            note=f"if that is meant, --allow {allowing}",
        )
        for name, base, new, allowing in told
    ]


def _package(one: Difference) -> str:
    return one.name.partition(".")[2]


def unknown_names(allow: Iterable[str]) -> list[Finding]:
    """Report names that are none of a manifest: a typing mistake allows nothing."""
    return [
        Finding(
            kind=Kind.NOT_COMPARABLE,
            note=f"--allow {name}: no such part of a manifest; there are {', '.join(PARTS)}",
        )
        for name in allow
        if name.partition(".")[0] not in PARTS
    ]


def differences(base: dict[str, str], new: dict[str, str]) -> tuple[Difference, ...]:
    """Compare entries; one that is missing is told as ``absent``."""
    names = dict.fromkeys([*base, *new])
    return tuple(
        Difference(name, base.get(name, "absent"), new.get(name, "absent"))
        for name in names
        if base.get(name) != new.get(name)
    )


def is_allowed(name: str, allow: Collection[str]) -> bool:
    """Whether an entry, or the part that it belongs to, is among the names."""
    return name in allow or name.partition(".")[0] in allow


def _differences(base: Launch, new: Launch) -> tuple[Difference, ...]:
    """Compare two runs; a part that one of them is too old to have is no difference."""
    lacking = {part for part in _YOUNG_PARTS for launch in (base, new) if not getattr(launch.file.run, part)}
    return tuple(one for one in differences(_identity(base), _identity(new)) if one.part not in lacking)


def _identity(launch: Launch) -> dict[str, str]:
    return manifest_of(launch.file.run) | _runtime(launch)


def manifest_of(run: Run) -> dict[str, str]:
    """Everything that tells runs apart, but for when and by which command they were made."""
    tables: dict[str, dict[str, str] | dict[str, str | int]] = {
        "toolchain": run.toolchain,
        "harness": run.harness,
        "checkpoint": run.checkpoint,
        "grid": run.grid,
        "port": run.port,
        "options": {name: value for name, value in run.options.items() if name not in _OWN_PARTS | _LIMITS_OF_WORK},
        "data": run.data,
        "machine": run.machine,
        "packages": run.packages,
    }
    found = {"target": run.target, "chip": run.chip, "limits_sha256": run.limits_sha256}
    found |= {f"{part}.{name}": str(value) for part, table in tables.items() for name, value in table.items()}
    found.pop(f"packages.{_OWN_PACKAGE}", None)
    return found | {f"health.{one.name}": str(one.value) for one in run.health if one.name in _LASTING}


def _runtime(launch: Launch) -> dict[str, str]:
    """Libraries that ran, over all records."""
    versions: dict[str, dict[str, None]] = {}
    for record in launch.checks.values():
        for name, value in record.runtime.items():
            if name != "remarks":
                versions.setdefault(f"runtime.{name}", {})[value] = None
    return {name: ", ".join(sorted(values)) for name, values in sorted(versions.items())}
