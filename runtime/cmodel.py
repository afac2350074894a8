"""What only the simulator needs: its three libraries side by side, and peace among its threads. Runs on Python 3.8.

libbmlib opens its chip by the name libcmodel.so. In the wheel that name may point to any chip, so the three files of
ours get their expected names in a folder of symbolic links.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.faults import LibraryMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

CHIP = "libcmodel.so"
_LINKS = {
    "libbmlib.so.0": ("libbmlib_bm1684x.so.0", "libbmlib.so.0"),  # TPU-MLIR 1.28.1 has it under the plain name alone
    "libbmrt.so.1.0": ("libbmrt.so.1.0",),
    CHIP: ("libcmodel_bm1684x.so", "libcmodel_1684x.so"),  # as it is called in 1.24 and 1.15.2
}
"""What each is linked to: the first of these names that the wheel has."""

_UNUSED_ENGINES = frozenset({"TPU_GDE", "TPU_SORT", "TPU_NMS"})
_MATRICES, _MOVES = "TPU_BD", "TPU_GDMA"
_COMPUTING_ENGINES = frozenset({_MATRICES, _MOVES})
_DISPATCHER = "CORE_MAIN"
_WAITING_NICENESS = 5
_BUSY_THREADS = 4  # the caller, the dispatcher, and the two engines that compute
_THREADS_START_WITHIN_S = 1.0


@contextmanager
def linked_libraries(folder: Path, scratch: str | None = None) -> Iterator[Path]:
    """Give a folder with links to the libraries in *folder*; it is only needed while a device is being opened.

    Args:
        folder: ``tpu_mlir/lib`` of a wheel, or a stand-in's.
        scratch: where to make it; None for where temporary files go.

    Raises:
        LibraryMissing: a library is absent.
    """
    found = {link: next(filter(Path.is_file, map(folder.joinpath, names)), None) for link, names in _LINKS.items()}
    missing = [str(folder / _LINKS[link][0]) for link, file in found.items() if file is None]
    if missing:
        raise LibraryMissing(
            f"not found: {', '.join(missing)}. They are part of a TPU-MLIR wheel, in the folder tpu_mlir/lib"
        )
    links = Path(tempfile.mkdtemp(prefix="cmodel-", dir=scratch))
    try:
        for link, file in found.items():
            if file is not None:
                (links / link).symlink_to(file.resolve())
        yield links
    finally:
        shutil.rmtree(links, ignore_errors=True)


def variables(memory_bytes: int | None) -> dict[str, str]:
    """Environment variables for a process that opens the simulator; None keeps its default of 4 GiB."""
    if memory_bytes is None:
        return {}
    return {"CMODEL_GLOBAL_MEM_SIZE": hex(memory_bytes)}  # a decimal number would silently mean no memory at all


def calm_threads() -> None:
    """Give the cores to the engines that compute; called on the thread that will launch, once the device is open.

    Each engine, the dispatcher and the caller of a launch are threads that spin while they wait, and on few cores
    they starve each other. The engines that RWKV-7 hardly uses get only cores that nobody else wants. Where there is
    not a core for each of the others, dispatcher and caller, which mostly wait, step back. On two cores each
    computing engine has one of them, with one of those that wait. Results stay the same, bit for bit.
    """
    caller = threading.get_native_id()
    wanted = _UNUSED_ENGINES | _COMPUTING_ENGINES | {_DISPATCHER}
    deadline = time.monotonic() + _THREADS_START_WITHIN_S
    while len(threads := _threads_named(wanted)) < len(wanted) and time.monotonic() < deadline:
        time.sleep(0.005)
    if len(threads) < len(wanted):  # another release names them otherwise: slow, but right
        return
    for name in _UNUSED_ENGINES:
        os.sched_setscheduler(threads[name], os.SCHED_IDLE, os.sched_param(0))
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < _BUSY_THREADS:
        _step_back(threads[_DISPATCHER])
        _step_back(caller)
    if len(cores) == len(_COMPUTING_ENGINES):
        for thread in (caller, threads[_MATRICES]):
            os.sched_setaffinity(thread, cores[:1])
        for thread in (threads[_DISPATCHER], threads[_MOVES]):
            os.sched_setaffinity(thread, cores[1:])


def _step_back(thread: int) -> None:
    niceness = max(os.getpriority(os.PRIO_PROCESS, thread), _WAITING_NICENESS)  # going below needs privilege
    os.setpriority(os.PRIO_PROCESS, thread, niceness)


def _threads_named(names: frozenset[str]) -> dict[str, int]:
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:  # ended since it was listed
            continue
        if name in names:
            found[name] = int(task.name)
    return found
