"""A stand-in for a board: libsophon's layout with the simulator's libraries, so that all of ``--device 0`` can run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.device.board import is_simulator
from runtime.faults import LibraryMissing

if TYPE_CHECKING:
    from pathlib import Path

_NOTE = "README"
_TEXT = """\
This folder is laid out like libsophon's, but its libraries are those of the BM1684X simulator in
{simulator}
Everything that runs on it says "simulator (stand-in for board 0)". It measures nothing.
"""

# As libsophon names them, as the simulator does, and as each looks for the other.
_LINKS = {
    "libbmlib.so": "libbmlib_bm1684x.so.0",
    "libbmlib.so.0": "libbmlib_bm1684x.so.0",
    "libbmlib_bm1684x.so.0": "libbmlib_bm1684x.so.0",
    "libbmrt.so": "libbmrt.so.1.0",
    "libbmrt.so.1.0": "libbmrt.so.1.0",
    "libcmodel.so": "libcmodel_bm1684x.so",
    "libcmodel_bm1684x.so": "libcmodel_bm1684x.so",
}


class StandInError(RuntimeError):
    """A stand-in cannot be made there."""


def make_stand_in(folder: Path, simulator: Path) -> Path:
    """Make a stand-in in *folder*, or renew one that is there; return its folder of libraries.

    Args:
        folder: new, empty, or an older stand-in.
        simulator: the folder ``tpu_mlir/lib`` of an installed toolchain. It must stay: the stand-in points at it.

    Raises:
        StandInError: *folder* holds something else.
        LibraryMissing: the simulator is not whole.
    """
    missing = sorted(str(simulator / name) for name in set(_LINKS.values()) if not (simulator / name).is_file())
    if missing:
        raise LibraryMissing(f"not found: {', '.join(missing)}. They are part of an installed toolchain")
    libraries = folder / "lib"
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / _NOTE).is_file())):
        raise StandInError(f"{folder} is there and is no stand-in: name a new folder")
    libraries.mkdir(parents=True, exist_ok=True)
    (folder / _NOTE).write_text(_TEXT.format(simulator=simulator))
    for name, target in _LINKS.items():
        link = libraries / name
        link.unlink(missing_ok=True)
        link.symlink_to((simulator / target).resolve())
    if not is_simulator(libraries):
        raise StandInError(f"{libraries}: its libbmlib is not recognised as the simulator's, so records would lie")
    return libraries
