"""Room on the disk for a compile: what it needs, and whether it is there."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from compile.streamed import float32_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from compile.dims import Arrays

_TIMES_ARRAYS = 5.5
_BASE_BYTES = 64_000_000  # text, logs, and the firmware that every bmodel has in it
_FULL_BYTES = 16_000_000


class DiskFullError(RuntimeError):
    """There is no room for a compile, which says nothing of the compiler; tells how much is needed."""


def needed_bytes(arrays: Arrays) -> int:
    """What a compile takes on the disk at its fullest, at least as much as was measured.

    That is each weight in float32 in the ONNX, in the TOP dialect and, until it is folded, in the TPU dialect, then in
    its own precision in the final one and in the bmodel: 5 times the arrays in F32, 4 in F16.
    """
    return _BASE_BYTES + int(_TIMES_ARRAYS * float32_bytes(arrays))


def check_room(folder: Path, needed: int, what: str) -> None:
    """See that there is room in *folder*.

    Raises:
        DiskFullError: there is not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"{what} needs {needed / 1e9:.2f} GB on the disk of {folder}, but {free / 1e9:.2f} GB are free\n"
            "Make room, choose another cache folder with RWKV_TPU_CACHE, or have the cache keep less with a smaller "
            "RWKV_TPU_CACHE_LIMIT (gigabytes)."
        )


def is_full(folder: Path, said: str) -> bool:
    """Whether a tool that failed and said so much will have failed for want of room."""
    return "No space left on device" in said or shutil.disk_usage(folder).free < _FULL_BYTES
