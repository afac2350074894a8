"""All that runs on the other machine as one file: a zip file that Python runs from, of modules as they are here."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import runtime
from harness.device import sensors
from harness.device.remote import far_side


def worker_package() -> bytes:
    """A zip file of `far_side`, `sensors` and runtime; the same sources always give the same bytes."""
    folder = Path(runtime.__file__).parent
    files = {f"runtime/{path.name}": path for path in sorted(folder.glob("*.py"))}
    for path in (Path(far_side.__file__), Path(sensors.__file__)):
        files[path.name] = path
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, path in files.items():
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
    return packed.getvalue()
