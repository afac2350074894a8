"""The worker as one file: the modules of runtime as they are here, in a zip file that Python runs from."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import runtime
from harness.device.remote import far_side


def worker_package() -> bytes:
    """A zip file of `far_side` and runtime; the same sources always give the same bytes."""
    folder = Path(runtime.__file__).parent
    files = {f"runtime/{path.name}": path for path in sorted(folder.glob("*.py"))}
    files["far_side.py"] = Path(far_side.__file__)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, path in files.items():
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
    return packed.getvalue()
