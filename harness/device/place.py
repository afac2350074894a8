"""Where a run's bmodels run, from the option ``--device``: one value that hides what is behind it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from harness.device.board import locate_board
from harness.device.health import read_health
from harness.device.remote.address import SCHEME, RemoteAddress
from harness.device.remote.faults import RemoteFault
from harness.device.remote.host import open_remote
from harness.paths import cache_folder
from runtime.engine import Engine
from runtime.faults import BadBmodel, LibraryMissing, RuntimeFault
from runtime.libraries import Libraries
from runtime.nets import assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.device.board import Board
    from reports.schema import Reading
    from runtime.engine import Assemble
    from runtime.nets import Floats

CMODEL = "cmodel"


class Opener(Protocol):
    """Opens an engine with bmodels; *assemble* is the contract of their nets, *embedding* what some take rows of."""

    def __call__(
        self, bmodels: Sequence[Path], *, assemble: Assemble = assemble, embedding: Floats | None = None
    ) -> Engine:
        """Load *bmodels*; see :meth:`runtime.engine.Engine.open`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A simulator or a board that bmodels run on.

    Attributes:
        label: what every record calls it; a simulator says that it is one.
        name: the same as a word for the names of files, locks and folders.
        description: one line for a person.
        simulated: whether no chip is behind it, so that times say nothing.
        watched: whether it is locked, has a canary and can be quarantined; the plain simulator needs none of that.
        open: open an engine with bmodels on it, see :meth:`runtime.engine.Engine.open`.
        readings: what it tells of its health, see :func:`harness.device.health.read_health`.
        recovery: what a person can paste to bring it back.
        lift: what a person can paste to use it again afterwards.
        blameless: faults that tell of this host, or of the way to the board, and nothing about the board.
        close: give back what the place itself holds, after its engines.
    """

    label: str
    name: str
    description: str
    simulated: bool
    watched: bool
    open: Opener
    readings: Callable[[], tuple[Reading, ...]] = tuple
    recovery: str = ""
    lift: str = ""
    blameless: tuple[type[RuntimeFault], ...] = (LibraryMissing, BadBmodel)
    close: Callable[[], None] = lambda: None

    @property
    def state_folder(self) -> Path:
        """What is kept about it between runs: the canary's known answer, its quarantine."""
        return state_folder(self.name)


def state_folder(name: str) -> Path:
    """What is kept between runs about the place of that name."""
    return cache_folder() / "boards" / name


def open_place(device: str, libsophon: Path | None, simulator: Path) -> Place:
    """Turn the option ``--device`` into a place.

    Args:
        device: ``cmodel``, the number of a board, or ``ssh://user@host/N``.
        libsophon: of the board, in place of the usual folder.
        simulator: the folder of the simulator's libraries.

    Raises:
        NoBoardError: there is no such board.
        RemoteFault: the host of a distant board cannot be used.
        ValueError: *device* is none of these, or *libsophon* is given where it says nothing.
    """
    if device.startswith(SCHEME):
        if libsophon is not None:
            raise ValueError(f"--libsophon is of a board here: for {SCHEME}…, write ?libsophon=/DIR behind the address")
        return _distant(RemoteAddress.parse(device))
    if device == CMODEL:
        if libsophon is not None:
            raise ValueError("--libsophon is of a board: give --device N too")
        return _simulator(simulator)
    if not (device.isascii() and device.isdecimal()):
        raise ValueError(f"--device {device}: should be {CMODEL!r} or the number of a board, or {SCHEME}user@host/N")
    return place_of(locate_board(int(device), libsophon))


def place_of(board: Board) -> Place:
    """The place that a board of this machine is."""
    what = f"BM1684X {board.label}" if board.simulated else f"BM1684X board {board.number} ({board.kind.value})"
    return Place(
        label=board.label,
        name=board.name,
        description=f"{what}, libraries {board.libraries.folder}",
        simulated=board.simulated,
        watched=True,
        open=partial(_open, board.libraries, board.number),
        readings=partial(read_health, board),
        recovery=board.recovery,
        lift=board.lift,
    )


def _distant(address: RemoteAddress) -> Place:
    host = open_remote(address)
    return Place(
        label=host.label,
        name=host.name,
        description=host.description,
        simulated=host.simulated,
        watched=True,
        open=host.open_engine,
        readings=host.readings,
        recovery=host.recovery,
        lift=f"rwkv-tpu doctor --lift {shlex.quote(str(address))}",
        blameless=(LibraryMissing, BadBmodel, RemoteFault),
        close=host.close,
    )


def _simulator(folder: Path) -> Place:
    return Place(
        label=CMODEL,
        name=CMODEL,
        description=f"BM1684X simulator (cmodel), libraries {folder}",
        simulated=True,
        watched=False,
        open=partial(_open, Libraries.cmodel(folder), 0),
    )


def _open(
    libraries: Libraries,
    number: int,
    bmodels: Sequence[Path],
    *,
    assemble: Assemble = assemble,
    embedding: Floats | None = None,
) -> Engine:
    return Engine.open(libraries, bmodels, device=number, assemble=assemble, embedding=embedding)
