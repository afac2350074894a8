"""Where a run comes from: its first line and its records' runtime, made for real, leave nothing of the list out."""

import hashlib
import re
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest

from harness.cases import load_grid
from harness.check import Check
from harness.checkpoints import DEFAULT, open_model
from harness.limits import load_limits
from harness.manifest import manifest
from harness.plugin import chosen_options
from harness.records import RunWriter
from harness.run import SuiteRun
from reports.schema import Reading, read
from runtime.engine import Engine
from tests.fake_libsophon.build import FakeModel, fake_board, write_bmodel

SHA256 = re.compile("[0-9a-f]{64}")
BOARD = (Reading(name="driver", value="0.5.1"), Reading(name="firmware", value="1.2"))


def sha256_of(path):
    """Of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def told(toolchain, request, tmp_path):
    """A first line as a run of the suites writes it, read back as its tables."""
    run = manifest(
        run_id="r1",
        target="0",
        toolchain=toolchain,
        model=open_model(None),
        grid=load_grid("smoke"),
        port={},
        limits_sha256=load_limits()[1],
        known_sha256="ab" * 32,
        options=chosen_options(request.config.getoption),
        health=BOARD,
        checks=7,
    )
    writer = RunWriter(tmp_path / "run", run)
    writer.close()
    return msgspec.to_builtins(read(writer.path).run)


@pytest.mark.toolchain
def test_every_item(told, toolchain):
    """None is missing or empty, and each hash is one."""
    assert not told.pop("port")  # somebody else's: there is none
    assert not told.pop("resumed")
    for name, value in told.items():
        assert value, name
        if isinstance(value, dict):
            assert all(entry not in {"", None} for entry in value.values()), (name, value)
    assert set(told["harness"]) == {"version", "commit", "changed"}
    assert re.fullmatch("[0-9a-f]{40}", told["harness"]["commit"])
    assert told["toolchain"]["version"] == toolchain.version
    assert re.fullmatch(r"v?[0-9.]+-.*g[0-9a-f]+.*", told["toolchain"]["commit"])
    hashes = [told["toolchain"]["wheel_sha256"], told["checkpoint"]["sha256"], told["grid"]["sha256"]]
    hashes += [told["limits_sha256"], *told["data"].values()]
    assert len(hashes) == 6  # the vocabulary and the list of expected failures are the data
    assert all(SHA256.fullmatch(one) for one in hashes), hashes
    assert told["checkpoint"]["sha256"] == sha256_of(DEFAULT)
    assert set(told["machine"]) == {"system", "processor", "cores", "memory_bytes", "python"}
    assert told["packages"]["numpy"] == version("numpy")
    assert list(told["command"]) == sys.argv
    assert told["chip"] == "BM1684X"
    assert {"device", "grid", "toolchain", "stage-timeout"} <= set(told["options"])
    assert [one["name"] for one in told["health"]] == ["driver", "firmware"]


def test_libraries_of_a_record(tmp_path, monkeypatch):
    """A check learns which library files ran, by name and hash, and their versions."""
    libraries = fake_board(tmp_path / "libsophon")
    bmodel = write_bmodel(tmp_path / "one.bmodel", FakeModel().whole())
    with Engine.open(libraries, [bmodel]) as engine:
        run = object.__new__(SuiteRun)  # of which only the open engine matters here
        run._engine = ("one",), engine
        monkeypatch.setattr(SuiteRun, "_what_to_load", lambda *_: (("one",), None))
        check = Check()
        assert run.engine(check) is engine
        files = {Path(one.path).name: one.path for one in engine.versions.libraries}
    runtime = check.runtime
    assert {name.split(".")[0] for name in files} >= {"libbmlib", "libbmrt"}
    for name, path in files.items():
        assert runtime[f"{name}_sha256"] == sha256_of(path)
    assert all(runtime[name] for name in ("kind", "libbmlib", "libbmrt", "driver"))
    assert runtime["kind"] == "board"
