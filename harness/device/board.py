"""Finding a board, and saying what was looked for where there is none."""

from __future__ import annotations

from pathlib import Path

from runtime.libraries import BOARD_FOLDER, Libraries


class NoBoardError(RuntimeError):
    """There is no such board on this machine; says what was looked for."""


def find_board(number: int, root: Path = Path("/")) -> Libraries:
    """The libraries that drive board *number*; *root* is where the file system begins, for tests.

    Raises:
        NoBoardError: libsophon is not installed, or there is no device node of that number.
    """
    folder = root / BOARD_FOLDER.relative_to("/")
    nodes = [root / "dev" / f"bm-sophon{number}"]  # PCIe cards
    if number == 0:
        nodes.append(root / "dev" / "bm-tpu0")  # the chip of an SoC board
    libraries = [folder / "libbmlib.so", folder / "libbmrt.so"]
    missing = [str(path) for path in libraries if not path.exists()]
    if not any(node.exists() for node in nodes):
        missing.append(" or ".join(map(str, nodes)))
    if missing:
        raise NoBoardError(
            f"no board {number} on this machine; looked for and did not find: {', '.join(missing)}\n"
            "Install libsophon and its driver, or use --device cmodel, the simulator."
        )
    return Libraries.board(folder)
