"""Finding a CPython 3.10: only one that proves itself by running is believed."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compile import python310
from compile.python310 import Python310Error, find_python310

GOOD = [[3, 10], "CPython", None, "/the/real/python3.10"]


def script(path: Path, body: str) -> Path:
    """An executable shell script at *path*."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def answers(path: Path, answer: object) -> Path:
    """A stand-in for an interpreter, which answers the probe with *answer*."""
    return script(path, f"echo '{json.dumps(answer)}'")


def shim(path: Path) -> Path:
    """What pyenv puts on PATH where no version 3.10 is selected: it exists, and it fails."""
    return script(path, 'echo "pyenv: python3.10: command not found" >&2; exit 127')


def environment(tmp_path: Path, *on_path: str, **variables: str) -> dict[str, str]:
    """An environment with these folders of *tmp_path* on PATH, and nothing of this machine's."""
    return {"PATH": ":".join(str(tmp_path / folder) for folder in on_path), "PYENV_ROOT": str(tmp_path / "pyenv")} | {
        name: str(tmp_path / value) for name, value in variables.items()
    }


def test_a_failing_shim_on_path_is_passed_over_for_the_next_on_path(tmp_path: Path) -> None:
    """A pyenv shim that only fails does not hide the interpreter that stands behind it on PATH."""
    shim(tmp_path / "shims" / "python3.10")
    answers(tmp_path / "bin" / "python3.10", GOOD)
    assert find_python310(environment(tmp_path, "shims", "bin")) == Path("/the/real/python3.10")


def test_a_failing_shim_on_path_is_passed_over_for_pyenvs_newest(tmp_path: Path) -> None:
    """Behind a failing shim pyenv's own versions are tried, the highest patch number (not text) first."""
    shim(tmp_path / "shims" / "python3.10")
    for patch in ("3.10.9", "3.10.13", "3.10.2"):
        answers(tmp_path / "pyenv" / "versions" / patch / "bin" / "python3.10", [*GOOD[:3], f"/{patch}"])
    assert find_python310(environment(tmp_path, "shims")) == Path("/3.10.13")


def test_the_variable_comes_before_path(tmp_path: Path) -> None:
    """$RWKV_TPU_PYTHON310 wins over everything else."""
    answers(tmp_path / "bin" / "python3.10", GOOD)
    answers(tmp_path / "mine", [*GOOD[:3], "/mine"])
    assert find_python310(environment(tmp_path, "bin", RWKV_TPU_PYTHON310="mine")) == Path("/mine")


def test_an_unusable_variable_is_an_error(tmp_path: Path) -> None:
    """A variable that names no usable interpreter is reported, not silently replaced by one from PATH."""
    answers(tmp_path / "bin" / "python3.10", GOOD)
    with pytest.raises(Python310Error, match=r"\$RWKV_TPU_PYTHON310 should name .* does not start: No such file"):
        find_python310(environment(tmp_path, "bin", RWKV_TPU_PYTHON310="absent"))


def test_another_version_is_refused() -> None:
    """The interpreter that runs this test is none of version 3.10, and says so itself."""
    version = "{}.{}".format(*sys.version_info)
    with pytest.raises(Python310Error, match=f"{sys.executable} is CPython {version}"):
        find_python310({"RWKV_TPU_PYTHON310": sys.executable})


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([[3, 10], "PyPy", None, "/pypy"], "is PyPy 3.10"),
        ([[3, 10], "CPython", "No module named 'ensurepip'", "/p"], "No module named .ensurepip.*python3.10-venv"),
        ("hello", "is no Python: it printed"),
    ],
)
def test_what_runs_but_will_not_do_is_refused(tmp_path: Path, answer: object, reason: str) -> None:
    """Another implementation, one without ensurepip, and a program that is no Python are each named as such."""
    python = tmp_path / "python3.10"
    script(python, f'cat <<"END"\n{json.dumps(answer) if isinstance(answer, list) else answer}\nEND')
    with pytest.raises(Python310Error, match=reason):
        find_python310({"RWKV_TPU_PYTHON310": str(python)})


def test_one_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that never answers costs the time limit, not for ever."""
    monkeypatch.setattr(python310, "TIMEOUT_S", 0.2)
    hangs = script(tmp_path / "python3.10", "exec sleep 600")
    start = time.monotonic()
    with pytest.raises(Python310Error, match=r"does not answer within 0.2 s"):
        find_python310({"RWKV_TPU_PYTHON310": str(hangs)})
    assert time.monotonic() - start < 300


def test_uv_is_asked_last(tmp_path: Path) -> None:
    """Where uv is installed, the interpreter that it names is tried as well."""
    answers(tmp_path / "uv-keeps" / "python3.10", GOOD)
    script(tmp_path / "bin" / "uv", f'[ "$*" = "python find 3.10" ] && echo {tmp_path}/uv-keeps/python3.10')
    assert find_python310(environment(tmp_path, "bin")) == Path("/the/real/python3.10")


def test_an_error_lists_every_place_and_the_ways_out(tmp_path: Path) -> None:
    """With none to be had, the one error names each place, what happened there, and how to get an interpreter."""
    shim(tmp_path / "shims" / "python3.10")
    script(tmp_path / "shims" / "uv", "echo 'error: No interpreter found' >&2; exit 2")
    with pytest.raises(Python310Error) as caught:
        find_python310(environment(tmp_path, "shims"))
    message = str(caught.value)
    assert "PATH: " in message
    assert "exits with status 127: pyenv: python3.10: command not found" in message
    assert f"pyenv: no {tmp_path}/pyenv/versions/3.10.*" in message
    assert "exits with status 2: error: No interpreter found" in message
    assert "pyenv install 3.10" in message
    assert "export RWKV_TPU_PYTHON310=" in message


def test_empty_places_are_listed_too(tmp_path: Path) -> None:
    """A place that has nothing at all is listed as well."""
    with pytest.raises(Python310Error, match=r"(?s)PATH: it has no python3.10.*pyenv: no .*uv: it is not installed"):
        find_python310(environment(tmp_path, "nowhere"))


def test_the_one_found_here_makes_environments(tmp_path: Path) -> None:
    """Whatever is found on this machine is a CPython 3.10 that can make an environment."""
    try:
        python = find_python310()
    except Python310Error as error:
        pytest.skip(str(error))
    folder = tmp_path / "made"
    subprocess.run([python, "-I", "-m", "venv", "--without-pip", folder], check=True)
    said = subprocess.run([folder / "bin" / "python", "--version"], check=True, capture_output=True, text=True)
    assert said.stdout.startswith("Python 3.10.")
    shutil.rmtree(folder)
