"""Where the vendor's libraries lie: those of a board, or the simulator's. Runs on Python 3.8."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

BOARD_FOLDER = Path("/opt/sophon/libsophon-current/lib")


class Kind(Enum):
    """What stands behind the libraries."""

    BOARD = "board"
    CMODEL = "cmodel"


@dataclass(frozen=True)
class Libraries:
    """The folder that holds libbmlib and libbmrt; nothing is looked up before an engine is opened."""

    kind: Kind
    folder: Path
    memory_bytes: int | None = None
    """Memory of the simulated device; None for the simulator's own choice (4 GiB)."""

    @classmethod
    def board(cls, folder: Path = BOARD_FOLDER) -> Libraries:
        """Name the libraries that drive a board, from libsophon."""
        return cls(Kind.BOARD, Path(folder))

    @classmethod
    def cmodel(cls, folder: Path, memory_bytes: int | None = None) -> Libraries:
        """Name the libraries of the simulator: *folder* is ``tpu_mlir/lib`` of an installed TPU-MLIR wheel.

        Args:
            folder: it is only read from.
            memory_bytes: size of the simulated device memory, of which the simulator keeps 81 MiB for itself.

        Raises:
            ValueError: *memory_bytes* is not positive.
        """
        if memory_bytes is not None and memory_bytes <= 0:
            raise ValueError(f"memory_bytes should be positive, got {memory_bytes}")
        return cls(Kind.CMODEL, Path(folder), memory_bytes)
