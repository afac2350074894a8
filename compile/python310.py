"""Find a CPython 3.10 that really works: TPU-MLIR's wheels are built for that version alone."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

VARIABLE = "RWKV_TPU_PYTHON310"
TIMEOUT_S = 20

# Answered by the candidate itself. Debian makes ensurepip a package of its own, so that venv alone proves nothing.
PROBE = """
import json, platform, sys
try:
    import ensurepip, venv
    missing = None
except ImportError as error:
    missing = str(error)
print(json.dumps([list(sys.version_info[:2]), platform.python_implementation(), missing, sys.executable]))
"""

ADVICE = f"""Ways to get one:
  uv python install 3.10
  pyenv install 3.10
  apt-get install python3.10 python3.10-venv   (where the distribution has it, as Ubuntu 22.04 does)
  export {VARIABLE}=/path/to/python3.10   (one that is somewhere else)"""


class Python310Error(RuntimeError):
    """No usable CPython 3.10; the message lists what was tried and the ways to get one."""


class _UnusableError(Exception):
    """Why one place gives no interpreter."""


def find_python310(environ: Mapping[str, str] | None = None) -> Path:
    """Return the first interpreter that proves, by running, to be a CPython 3.10 with venv and ensurepip.

    Looked for in this order: ``$RWKV_TPU_PYTHON310`` (if set, nothing else will do), ``python3.10`` on PATH,
    pyenv's versions, uv. None is believed unrun: a pyenv shim stands on PATH even where all it does is fail.

    Args:
        environ: the environment variables to go by; by default this process's.

    Raises:
        Python310Error: none works; lists each place with what happened there, and the ways to get one.
    """
    environ = os.environ if environ is None else environ
    if named := environ.get(VARIABLE):
        try:
            return _probe(named, environ)
        except _UnusableError as reason:
            raise Python310Error(
                f"${VARIABLE} should name a CPython 3.10, but {reason}\nCorrect it, or unset it to search elsewhere."
            ) from reason
    tried = []
    for place, candidates in (("PATH", _on_path), ("pyenv", _in_pyenv), ("uv", _from_uv)):
        try:
            for candidate in candidates(environ):
                try:
                    return _probe(candidate, environ)
                except _UnusableError as reason:
                    tried.append(f"  {place}: {reason}")
        except _UnusableError as reason:
            tried.append(f"  {place}: {reason}")
    raise Python310Error("\n".join(["No working CPython 3.10 found. Tried:", *tried, ADVICE]))


def _on_path(environ: Mapping[str, str]) -> Iterator[str]:
    folders = [folder for folder in dict.fromkeys(environ.get("PATH", "").split(os.pathsep)) if folder]
    found = [folder for folder in folders if (Path(folder) / "python3.10").exists()]
    if not found:
        raise _UnusableError("it has no python3.10")
    yield from (str(Path(folder) / "python3.10") for folder in found)


def _in_pyenv(environ: Mapping[str, str]) -> Iterator[str]:
    versions = Path(environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = sorted(versions.glob("3.10.*/bin/python3.10"), key=_patch_number, reverse=True)
    if not found:
        raise _UnusableError(f"no {versions}/3.10.*/bin/python3.10")
    yield from map(str, found)


def _patch_number(interpreter: Path) -> int:
    patch = interpreter.parent.parent.name.split(".")[2]
    return int(patch) if patch.isdecimal() else -1


def _from_uv(environ: Mapping[str, str]) -> Iterator[str]:
    uv = shutil.which("uv", path=environ.get("PATH", ""))
    if uv is None:
        raise _UnusableError("it is not installed")
    yield _output([uv, "python", "find", "3.10"], environ).strip()


def _probe(candidate: str, environ: Mapping[str, str]) -> Path:
    """Run *candidate* and return the interpreter behind it, which for a shim is another file."""
    answer = _output([candidate, "-I", "-c", PROBE], environ)
    try:
        version, implementation, missing, executable = json.loads(answer)
    except ValueError as error:
        raise _UnusableError(f"{candidate} is no Python: it printed {answer[:200]!r}") from error
    if version != [3, 10] or implementation != "CPython":
        raise _UnusableError(f"{candidate} is {implementation} {'.'.join(map(str, version))}")
    if missing is not None:
        raise _UnusableError(f"{candidate}: {missing} (on Debian and Ubuntu: apt-get install python3.10-venv)")
    return Path(executable)


def _output(command: list[str], environ: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            command, env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=True
        )
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).decode(errors="replace").strip() or "it said nothing"
        raise _UnusableError(f"{command[0]} exits with status {error.returncode}: {said.splitlines()[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise _UnusableError(f"{command[0]} does not answer within {TIMEOUT_S} s") from error
    except OSError as error:
        raise _UnusableError(f"{command[0]} does not start: {error.strerror}") from error
    return done.stdout.decode(errors="replace")
