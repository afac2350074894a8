"""Makes ``.venv``, the project's own environment, with the versions of ``constraints.txt``. Standard library only.

Run by ``make``; safe to kill and to run again. An environment counts once its stamp is written, last of all; one
without a stamp, or with that of other versions, is made anew. Downloads are kept by pip's cache.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / ".ready"
CONSTRAINTS = ROOT / "constraints.txt"
PYTHON = VENV / "bin" / "python"

NO_CPU_TORCH = """\
The package registry that pip uses here offers torch {version} with CUDA only, several gigabytes that this project
does not need. Get the CPU build, of the same version, in one of these ways, then run make again:
  - export PIP_EXTRA_INDEX_URL=<the CPU wheel index that "Get Started" on pytorch.org shows for pip, Linux, CPU>
  - put the file torch-{version}+cpu-*.whl into a folder and export PIP_FIND_LINKS=<that folder>
Or export RWKV_TPU_ANY_TORCH=1 to install what the registry offers.
"""


def main() -> None:
    """Make the environment, or see that it is there."""
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs this may have an older one
        sys.exit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: try  make PYTHON=python3.11")
    wanted = stamp()
    if ready(wanted):
        return
    with (ROOT / ".venv.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another make is setting up .venv; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready(wanted):
            build(wanted)


def build(wanted: str) -> None:
    """Make the environment from nothing."""
    start = time.monotonic()
    say(f"making .venv with Python {sys.version.split()[0]}")
    shutil.rmtree(VENV, ignore_errors=True)
    run(sys.executable, "-m", "venv", str(VENV))
    check_torch()
    say("installing dependencies (about 300 MB to download the first time)")
    run(*pip("install", "--progress-bar", "on" if sys.stderr.isatty() else "off", "--editable", f"{ROOT}[dev]"))
    STAMP.write_text(wanted)
    say(f"made .venv in {time.monotonic() - start:.0f} s")


def check_torch() -> None:
    """Stop before pip pulls gigabytes of CUDA."""
    if os.environ.get("RWKV_TPU_ANY_TORCH"):
        return
    command = pip("install", "--quiet", "--dry-run", "--no-deps", "--report", "-", "torch")
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, env=environment())
    if done.returncode:
        sys.exit("pip could not find torch in the version of constraints.txt; its message is above")
    metadata = json.loads(done.stdout)["install"][0]["metadata"]
    if any(name.startswith(("nvidia-", "cuda-")) for name in metadata.get("requires_dist", [])):
        sys.exit(NO_CPU_TORCH.format(version=metadata["version"]))


def pip(*arguments: str) -> list[str]:
    """Build a pip command line of the environment."""
    return [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]


def environment() -> dict[str, str]:
    """Constraints by variable also bind the environments in which pip builds packages."""
    return {**os.environ, "PIP_CONSTRAINT": str(CONSTRAINTS)}


def run(*command: str) -> None:
    """Run a step and stop where it fails; its output goes to the terminal as it comes."""
    done = subprocess.run(command, check=False, env=environment())
    if done.returncode:
        sys.exit(f"setting up failed at: {' '.join(command)}\nWhat went wrong stands above. Then run make again.")


def stamp() -> str:
    """What decides the environment's contents, as a hash."""
    parts = [sys.version, str(ROOT), *(path.read_text() for path in (ROOT / "pyproject.toml", CONSTRAINTS))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def ready(wanted: str) -> bool:
    """Tell whether the environment is whole and up to date."""
    return STAMP.is_file() and STAMP.read_text() == wanted


def say(text: str) -> None:
    """Show progress at once."""
    print(f"setup: {text}", flush=True)  # noqa: T201 - this is a command


if __name__ == "__main__":
    main()
