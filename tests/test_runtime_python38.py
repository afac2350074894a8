"""The worker on Python 3.8 without any package, as the ARM boards have it."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from runtime.engine import Engine
from runtime.libraries import Libraries
from runtime.process import WORKER
from runtime.session import Session
from runtime.window import VARIABLE
from tests.fake_libsophon.build import FakeModel, fake_board, write_bmodel

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def python38():
    """Path of a Python 3.8; its tests are skipped where there is none."""
    candidates = [shutil.which("python3.8"), *Path.home().glob(".pyenv/versions/3.8.*/bin/python")]
    for python in filter(None, candidates):
        run = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
        if run.stdout.startswith("Python 3.8."):  # a version manager's stand-in may stand for no version at all
            return str(python)
    pytest.skip("no Python 3.8 here: neither python3.8 on the PATH nor one of pyenv's")


def test_the_worker_imports(python38):
    """Every module that the worker needs imports there."""
    modules = [
        "worker",
        "device",
        "cmodel",
        "bmodel",
        "binding",
        "age",
        "framing",
        "window",
        "waiting",
        "libraries",
        "faults",
    ]
    imports = "; ".join(f"import runtime.{module}" for module in modules)
    run = subprocess.run(
        [python38, "-I", "-B", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {imports}; print('all')"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.strip() == "all", run.stderr


@pytest.mark.toolchain
def test_the_worker_runs(python38, rwkv_bmodels):
    """A worker there drives the simulator, and gives the same bits as one on this Python."""
    libraries = Libraries.cmodel(rwkv_bmodels.libraries)
    logits = []
    for options in ({}, {"command": [python38, "-m", "runtime.worker"]}):
        with Engine.open(libraries, [rwkv_bmodels.decode], **options) as engine, Session(engine) as session:
            logits.append(session.feed([1, 2]))
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("window", [True, False], ids=["shared memory", "pipes"])
def test_it_needs_no_window(python38, tmp_path, window):
    """The same bits whether its payloads lie in shared memory or pass the pipe; and it can do all that ours can."""
    board = fake_board(tmp_path)
    bmodel = write_bmodel(tmp_path / "a.bmodel", FakeModel().whole(), *FakeModel().blocks(4))
    python = [python38, "-m", "runtime.worker"]
    results = []
    for command in (WORKER, python if window else ["/usr/bin/env", "-u", VARIABLE, *python]):
        with Engine.open(board, [bmodel], command=command) as engine, Session(engine) as session:
            first = session.feed([1, 2, 3, 4, 5])
            with session.fork() as fork:
                fork.set_state([array + 1 for array in session.get_state()])
                results.append([first, session.feed([6]), fork.feed([6]), *fork.get_state()])
            assert engine._worker._sees_window == (window or command is WORKER)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
