"""What is installed, what is found, what works, and what to do next: one finding a line, gathered in a fixed order."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from compile import toolchain as toolchains
from compile.python310 import Python310Error, find_python310
from compile.release import DEFAULT_RELEASE
from harness.device import quarantine
from harness.device.board import NoBoardError, is_simulator, libraries_folder, locate_board
from harness.device.health import read_health, remarks
from harness.device.lock import BoardLock
from harness.device.place import place_of
from harness.device.probe import ProbeError, Step, probe
from harness.device.stand_in import make_stand_in
from harness.paths import cache_folder
from runtime.faults import LibraryMissing
from runtime.libraries import BOARD_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compile.toolchain import Toolchain
    from harness.device.board import Board

OLDEST_DRIVER_DATE = 20240717  # older stacks fail with "send api error" or garbled text, as its vendor says


class Health(Enum):
    """How one thing is."""

    OK = "ok"
    MISSING = "missing"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        needed: whether nothing works without it; decides the exit code.
        next: what to do, where it is not well.
    """

    section: str
    what: str
    health: Health
    detail: str
    needed: bool = False
    next: str = ""

    @property
    def stops(self) -> bool:
        """Whether something that is needed is not there or broken."""
        return self.needed and self.health in {Health.MISSING, Health.BROKEN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What is to be examined.

    Attributes:
        device: a board that is needed; None where the simulator will do.
        libsophon: its libsophon, in place of the usual one.
        deep: compile and run something too, which takes minutes.
        root: where the file system begins, for tests.
    """

    device: int | None = None
    libsophon: Path | None = None
    deep: bool = False
    root: Path = Path("/")


def examine(scope: Scope) -> Iterator[Finding]:
    """Look at everything, the cheapest first."""
    yield from _project()
    found = [one for one in toolchains.installed(cache_folder()) if isinstance(one, toolchains.Toolchain)]
    yield _python310(needed=not found)
    yield from _toolchains(deep=scope.deep)
    default = next((one for one in found if one.version == DEFAULT_RELEASE), None)
    yield from _simulator(default, deep=scope.deep)
    yield from _libsophon(scope)
    yield from _nodes(scope)
    yield from _boards(scope)


def _project() -> Iterator[Finding]:
    section = "project"
    told = f"rwkv-tpu-harness {version('rwkv-tpu-harness')}, Python {platform.python_version()}"
    yield Finding(section=section, what="version", health=Health.OK, detail=told)
    inside = sys.prefix != sys.base_prefix
    yield Finding(
        section=section,
        what="environment",
        health=Health.OK if inside else Health.UNKNOWN,
        detail=sys.prefix,
        next="" if inside else "its own environment is safer: make setup, then .venv/bin/rwkv-tpu",
    )
    try:
        yield Finding(section=section, what="torch", health=Health.OK, detail=version("torch"), needed=True)
    except PackageNotFoundError:
        yield Finding(
            section=section,
            what="torch",
            health=Health.MISSING,
            detail="not installed",
            needed=True,
            next="make setup",
        )
    cache = cache_folder()
    writable = os.access(next(path for path in (cache, *cache.absolute().parents) if path.exists()), os.W_OK)
    yield Finding(
        section=section,
        what="cache folder",
        health=Health.OK if writable else Health.BROKEN,
        detail=str(cache) if writable else f"{cache} cannot be written to",
        needed=True,
        next="" if writable else "export RWKV_TPU_CACHE=<a folder of yours>",
    )


def _python310(*, needed: bool) -> Finding:
    section, what = "compiler", "Python 3.10"
    try:
        return Finding(section=section, what=what, health=Health.OK, detail=str(find_python310()), needed=needed)
    except Python310Error as error:
        first, *rest = str(error).splitlines()
        return Finding(
            section=section,
            what=what,
            health=Health.MISSING,
            detail=first,
            needed=needed,
            next="\n".join(rest) or "install a CPython 3.10; RWKV_TPU_PYTHON310 names one",
        )


def _toolchains(*, deep: bool) -> Iterator[Finding]:
    section = "compiler"
    found = toolchains.installed(cache_folder())
    if not any(one.version == DEFAULT_RELEASE and isinstance(one, toolchains.Toolchain) for one in found):
        yield Finding(
            section=section,
            what=f"TPU-MLIR {DEFAULT_RELEASE}",
            health=Health.MISSING,
            detail=f"not in {toolchains.toolchains_folder(cache_folder())}",
            needed=True,
            next=f"rwkv-tpu toolchain install {DEFAULT_RELEASE}",
        )
    for one in found:
        what, anew = f"TPU-MLIR {one.version}", f"rm -r {one.root} && rwkv-tpu toolchain install {one.version}"
        if isinstance(one, toolchains.HalfMade):
            yield Finding(section=section, what=what, health=Health.BROKEN, detail=one.reason, next=anew)
            continue
        needed = one.version == DEFAULT_RELEASE
        gone = [path for path in (one.python, one.package, one.libraries) if not path.exists()]
        problems = [f"gone: {path}" for path in gone] or (toolchains.check(one) if deep else [])
        detail = f"{one.compiler_commit}, {'whole, and compiles' if deep else 'not examined further without --deep'}"
        yield Finding(
            section=section,
            what=what,
            health=Health.BROKEN if problems else Health.OK,
            detail="; ".join(problems) or detail,
            needed=needed,
            next=anew if problems else "",
        )


def _simulator(toolchain: Toolchain | None, *, deep: bool) -> Iterator[Finding]:
    section, what = "simulator", "opens"
    if toolchain is None:
        yield Finding(
            section=section,
            what=what,
            health=Health.UNKNOWN,
            detail="it comes with the toolchain",
            next=f"rwkv-tpu toolchain install {DEFAULT_RELEASE}",
        )
        return
    try:
        with tempfile.TemporaryDirectory(prefix="rwkv-tpu-doctor-") as name:
            folder = make_stand_in(Path(name) / "simulator", toolchain.libraries)
            chip = probe(folder, 0, Step.MEMORY).found[Step.CHIP.value]["chip_id"]
    except (LibraryMissing, ProbeError, OSError) as error:
        yield Finding(
            section=section,
            what=what,
            health=Health.BROKEN,
            detail=str(error),
            needed=True,
            next=f"rwkv-tpu toolchain check {toolchain.version}",
        )
        return
    detail = f"chip {chip}, its memory holds what is written to it"
    yield Finding(section=section, what=what, health=Health.OK, detail=detail, needed=True)
    if deep:
        yield _canary(toolchain)


def _canary(toolchain: Toolchain) -> Finding:
    # torch takes seconds to import, and only this needs it
    from compile.compiler import CompileError  # noqa: PLC0415
    from harness.device.canary import ask, make_canary  # noqa: PLC0415
    from harness.device.place import CMODEL, open_place  # noqa: PLC0415
    from runtime.faults import RuntimeFault  # noqa: PLC0415

    section, what = "simulator", "runs a model"
    try:
        canary = make_canary(toolchain)
        with open_place(CMODEL, None, toolchain.libraries).open([canary.bmodel.path]) as engine:
            answer = ask(canary, engine)
    except (CompileError, RuntimeFault) as error:
        return Finding(section=section, what=what, health=Health.BROKEN, detail=str(error), needed=True)
    if answer.breaches:
        return Finding(section=section, what=what, health=Health.BROKEN, detail="; ".join(answer.breaches), needed=True)
    detail = f"as the reference does, worst KL {answer.distances['kl_worst_nats']:.1e} nats"
    return Finding(section=section, what=what, health=Health.OK, detail=detail, needed=True)


def _libsophon(scope: Scope) -> Iterator[Finding]:
    section, needed = "libsophon", scope.device is not None
    usual = scope.root / BOARD_FOLDER.relative_to("/")
    folder = usual if scope.libsophon is None else libraries_folder(scope.libsophon)
    missing = [name for name in ("libbmlib.so", "libbmrt.so") if not (folder / name).exists()]
    if missing:
        yield Finding(
            section=section,
            what="libraries",
            health=Health.MISSING,
            detail=f"{', '.join(missing)} not in {folder}",
            needed=needed,
            next="only for a board: install libsophon, or give --libsophon DIR",
        )
        return
    note = ", the simulator's: a stand-in" if is_simulator(folder) else ""
    try:
        found = probe(folder, 0, Step.VERSIONS).found[Step.VERSIONS.value]
    except ProbeError as error:
        yield Finding(
            section=section,
            what="libraries",
            health=Health.BROKEN,
            detail=f"{folder}: {error}",
            needed=needed,
            next="install libsophon again, of this machine's architecture",
        )
        return
    yield Finding(section=section, what="libraries", health=Health.OK, detail=f"{folder}{note}", needed=needed)
    for name in ("libbmlib", "libbmrt"):
        yield Finding(section=section, what=name, health=Health.OK, detail=str(found[name]))
    lacking = ", ".join(found["missing"])
    yield Finding(
        section=section,
        what="functions",
        health=Health.BROKEN if lacking else Health.OK,
        detail=f"missing: {lacking}" if lacking else "all that are called are there",
        needed=needed,
        next="a libsophon of 2024-06-30 or later has them" if lacking else "",
    )


def _nodes(scope: Scope) -> Iterator[Finding]:
    section = "driver"
    dev = scope.root / "dev"
    nodes = sorted([*dev.glob("bm-sophon[0-9]*"), *dev.glob("bm-tpu[0-9]*"), *dev.glob("bmdev-ctl")])
    stand_in = scope.libsophon is not None and is_simulator(libraries_folder(scope.libsophon))
    if not nodes:
        yield Finding(
            section=section,
            what="device nodes",
            health=Health.UNKNOWN if stand_in else Health.MISSING,
            detail="a stand-in has none" if stand_in else f"no bm-sophonN, no bm-tpu0 in {dev}",
            needed=scope.device is not None,
            next="" if stand_in else "only for a board: load libsophon's driver; does lspci -d 1f1c: show the card?",
        )
        return
    for node in nodes:
        allowed = os.access(node, os.R_OK | os.W_OK)
        yield Finding(
            section=section,
            what=str(node),
            health=Health.OK if allowed else Health.BROKEN,
            detail="may be read and written" if allowed else "may not be read and written by this user",
            needed=scope.device is not None,
            next="" if allowed else f"ls -l {node} tells which group may; join it, or run with sudo",
        )


def _boards(scope: Scope) -> Iterator[Finding]:
    section = "boards"
    numbers = sorted(
        {int(path.name.removeprefix("bm-sophon")) for path in (scope.root / "dev").glob("bm-sophon[0-9]")}
        | ({0} if (scope.root / "dev" / "bm-tpu0").exists() else set())
        | ({scope.device} if scope.device is not None else set())
        | ({0} if scope.libsophon is not None else set())
    )
    if not numbers:
        yield Finding(section=section, what="boards", health=Health.MISSING, detail="none; the simulator needs none")
    for number in numbers:
        needed = number == scope.device
        try:
            board = locate_board(number, scope.libsophon, scope.root)
        except NoBoardError as error:
            detail, *rest = str(error).splitlines()
            yield Finding(
                section=section,
                what=f"board {number}",
                health=Health.MISSING,
                detail=detail,
                needed=needed,
                next=" ".join(rest),
            )
            continue
        yield from _board(board, needed=needed)


def _board(board: Board, *, needed: bool) -> Iterator[Finding]:
    section, what = "boards", f"board {board.number}"
    yield Finding(section=section, what=what, health=Health.OK, detail=f"{board.label}, {board.kind.value}")
    readings = read_health(board)
    for reading in readings:
        known = reading.value is not None
        yield Finding(
            section=section,
            what=f"{what} {reading.name}",
            health=Health.OK if known else Health.UNKNOWN,
            detail=f"{reading.value} {reading.unit}".strip() if known else reading.why_unavailable,
        )
        if reading.name == "driver" and isinstance(reading.value, str):
            yield from _old_driver(reading.value)
    for remark in remarks(readings):
        yield Finding(section=section, what=what, health=Health.UNKNOWN, detail=remark, next="let it cool down")
    lock = BoardLock(board.name)
    holder = lock.holder() if lock.held() else None
    by = f"process {holder.pid} since {holder.since}: {holder.command}" if holder else "another process"
    yield Finding(
        section=section,
        what=f"{what} lock",
        health=Health.UNKNOWN if lock.held() else Health.OK,
        detail=f"held by {by}" if lock.held() else "free",
        next="wait for it to end" if lock.held() else "",
    )
    entry = quarantine.look(place_of(board).state_folder)
    yield Finding(
        section=section,
        what=f"{what} quarantine",
        health=Health.OK if entry is None else Health.BROKEN,
        detail="none" if entry is None else f"since {entry.since}: {entry.reason}",
        needed=needed,
        next="" if entry is None else f"{board.recovery}\nthen: {board.lift}",
    )


def _old_driver(text: str) -> Iterator[Finding]:
    """The driver says when it was built, as in ``release version:0.5.1   release date: 20240717-101010``."""
    digits = "".join(filter(str.isdigit, text.partition("date:")[2]))[:8]
    if len(digits) == 8 and int(digits) < OLDEST_DRIVER_DATE:
        yield Finding(
            section="driver",
            what="age",
            health=Health.BROKEN,
            detail=f"built {digits}; before {OLDEST_DRIVER_DATE}, RWKV and other language models fail on it",
            next="install a newer libsophon with its driver",
        )
