"""``pytest suites/ --device ssh://…`` on a stand-in behind a real OpenSSH server, also with the connection cut."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest

from harness.device import quarantine
from harness.device.stand_in import make_stand_in
from harness.paths import cache_folder
from reports.schema import Outcome, read
from tests.ssh_server import an_ssh_server, gone_within

ROOT = Path(__file__).parent.parent
LABEL = "simulator (stand-in for board ssh://board/0)"

pytestmark = pytest.mark.toolchain


@pytest.fixture
def server(tmp_path):
    """A server of our own, and an ``ssh`` that knows it as ``board``."""
    with an_ssh_server(tmp_path / "a server") as server:
        ssh = tmp_path / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(f"#!/bin/sh\nexec {shutil.which('ssh')} -F '{server.config}' \"$@\"\n")
        ssh.chmod(0o755)
        yield server


@pytest.fixture
def address(toolchain, tmp_path):
    """Of a stand-in there, with a folder of its own for what is copied; what is kept about it here goes with it."""
    make_stand_in(tmp_path / "stand-in", toolchain.libraries)
    options = {"libsophon": tmp_path / "stand-in", "cache": tmp_path / "there", "python": sys.executable}
    before = set((cache_folder() / "boards").glob("*"))
    yield f"ssh://board/0?{urlencode(options)}"
    for folder in set((cache_folder() / "boards").glob("board-0-*")) - before:
        shutil.rmtree(folder)


def run_suites(tmp_path, address, *arguments, cuts=None):
    """Run them there, in a process of its own; return its end and its records."""
    command = [sys.executable, "-m", "pytest", str(ROOT / "suites"), "--rootdir", str(ROOT), "-c"]
    command += [str(ROOT / "pyproject.toml"), "--runs", str(tmp_path / "runs"), "--grid", "smoke"]
    command += ["--device", address, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PATH"] = f"{tmp_path / 'bin'}:{environment['PATH']}"
    environment["PYTHONPATH"] = str(ROOT / "tests")
    if cuts is not None:
        command += ["-p", "cutting_connection"]
        environment["CUTS"] = str(cuts)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=1500
    )
    (file,) = (tmp_path / "runs").glob("*/records.jsonl")
    return done, read(file)


def assert_a_simulator_there(run, server, tmp_path):
    """Every record says what it is, the worker held the copies and no more, and nobody is left there."""
    assert run.run.target == LABEL
    assert run.run.where == f"the BM1684X {LABEL}"
    assert {record.target for record in run.records} == {LABEL}
    assert {record.runtime["kind"] for record in run.records if record.runtime} == {"cmodel"}
    assert all("canary_step_ms" not in record.metrics for record in run.records)
    page = (tmp_path / "runs" / run.run.id / "index.html").read_text()
    assert LABEL in page
    assert "BM1684X board" not in page
    assert {path.suffix for path in (tmp_path / "there").iterdir()} == {".zip", ".bmodel", ".lock"}
    gone_within(server.workers(), 10)


@pytest.mark.long
def test_a_connection_that_is_cut(server, address, tmp_path):
    """Cut twice in a case: no verdict, nobody is blamed. Cut once in the next one: it is judged once more."""
    done, run = run_suites(tmp_path, address, "-k", "parity and decode", cuts=3)
    assert done.returncode == 1, done.stdout[-8000:]
    assert done.stdout.count("once more, over a new connection") == 2
    assert [(record.check, record.outcome) for record in run.records] == [
        ("canary before the first case", Outcome.PASSED),
        ("canary after test_from_zero_state[decode-F16-chunk]", Outcome.PASSED),
        ("from_zero_state", Outcome.INFRA),
        ("from_random_state", Outcome.PASSED),
        ("canary after the last case", Outcome.PASSED),
    ]
    assert "ConnectionLost" in run.records[2].message
    assert run.end.outcomes == {"passed": 4, "infra": 1}
    assert "1 of 5 checks without a verdict</h1>" in (tmp_path / "runs" / run.run.id / "index.html").read_text()
    assert all(quarantine.look(folder) is None for folder in (cache_folder() / "boards").glob("board-0-*"))
    assert_a_simulator_there(run, server, tmp_path)


@pytest.mark.long
def test_every_suite(server, address, tmp_path):
    """The whole smoke grid, with a cut in its first case."""
    done, run = run_suites(tmp_path, address, cuts=1)
    assert done.returncode == 0, done.stdout[-8000:]
    assert not run.interrupted
    assert {record.outcome for record in run.records} <= {Outcome.PASSED, Outcome.SKIPPED}
    assert {record.suite for record in run.records} >= {"parity", "state", "tokenizer", "device"}
    assert_a_simulator_there(run, server, tmp_path)
