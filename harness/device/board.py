"""Finding a board, or what stands in for one, and saying what was looked for where there is none."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from runtime.libraries import BOARD_FOLDER, Libraries

_SIMULATOR_SIGN = b"libcmodel.so"  # the simulator's libbmlib opens its chip by this name; a board's has no use for it


class NoBoardError(RuntimeError):
    """There is no such board on this machine; says what was looked for."""


class BoardKind(Enum):
    """What a board's number leads to."""

    PCIE = "PCIe card"
    SOC = "SoC"
    STAND_IN = "stand-in"  # libsophon's layout with the simulator's libraries in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A board that was found: its libraries and its device node are there, and nothing was opened yet.

    Attributes:
        root: where the file system begins, for tests.
    """

    number: int
    kind: BoardKind
    libraries: Libraries
    root: Path = Path("/")

    @property
    def simulated(self) -> bool:
        """Whether no chip is behind it."""
        return self.kind is BoardKind.STAND_IN

    @property
    def label(self) -> str:
        """What records call it: a simulator is never called a board."""
        return f"simulator (stand-in for board {self.number})" if self.simulated else str(self.number)

    @property
    def name(self) -> str:
        """A word for the names of files about it; each stand-in is a machine of its own."""
        if not self.simulated:
            return f"board-{self.number}"
        return f"stand-in-{hashlib.sha256(bytes(self.libraries.folder.resolve())).hexdigest()[:8]}"

    @property
    def recovery(self) -> str:
        """What a person can paste to bring it back; it may disturb others, and is never run unasked."""
        if self.kind is BoardKind.PCIE:
            return f"bm-smi --dev={self.number:#x} --recovery   # resets the whole card: nothing may be using it"
        if self.kind is BoardKind.SOC:
            return "sudo reboot   # an SoC board has no other reset"
        return "nothing: it is the simulator, which starts anew with every process"

    @property
    def lift(self) -> str:
        """What a person can paste to use it again after a quarantine."""
        folder = self.libraries.folder
        elsewhere = "" if folder == BOARD_FOLDER else f" --libsophon {shlex.quote(str(folder))}"
        return f"rwkv-tpu doctor --lift {self.number}{elsewhere}"


def locate_board(number: int, libsophon: Path | None = None, root: Path = Path("/")) -> Board:
    """Find board *number*.

    Args:
        number: as in ``/dev/bm-sophonN``.
        libsophon: libsophon's folder, or its folder of libraries, in place of the usual one.
        root: where the file system begins, for tests.

    Raises:
        NoBoardError: libsophon is not installed, or there is no device node of that number.
    """
    folder = root / BOARD_FOLDER.relative_to("/") if libsophon is None else libraries_folder(libsophon)
    missing = [str(folder / name) for name in ("libbmlib.so", "libbmrt.so") if not (folder / name).exists()]
    if not missing and is_simulator(folder):
        if number:
            raise NoBoardError(f"no board {number}: the stand-in {folder} has one board, number 0")
        return Board(number=0, kind=BoardKind.STAND_IN, libraries=Libraries.cmodel(folder), root=root)
    card, chip = root / "dev" / f"bm-sophon{number}", root / "dev" / "bm-tpu0"
    nodes = [card, chip] if number == 0 else [card]  # an SoC board has one chip
    if not any(node.exists() for node in nodes):
        missing.append(" or ".join(map(str, nodes)))
    if missing:
        raise NoBoardError(
            f"no board {number} on this machine; looked for and did not find: {', '.join(missing)}\n"
            "Install libsophon and its driver (--libsophon DIR where it lies elsewhere), or use --device cmodel, the "
            "simulator. rwkv-tpu doctor tells more."
        )
    kind = BoardKind.SOC if number == 0 and chip.exists() else BoardKind.PCIE
    return Board(number=number, kind=kind, libraries=Libraries.board(folder), root=root)


def libraries_folder(libsophon: Path) -> Path:
    """The folder of libraries of a libsophon, which may be given itself."""
    inner = libsophon / "lib"
    return (inner if inner.is_dir() else libsophon).absolute()


def is_simulator(folder: Path) -> bool:
    """Whether the libbmlib in *folder* is the simulator's, which a record has to say whatever the folder is called."""
    try:
        return _SIMULATOR_SIGN in (folder / "libbmlib.so").read_bytes()
    except OSError:
        return False
