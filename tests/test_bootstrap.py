"""Setting up: whole or not at all, once at a time, and never gigabytes of CUDA unasked."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bootstrap(tmp_path, monkeypatch):
    """The script as a module that works in a temporary folder."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(name)
    venv = tmp_path / ".venv"
    for name, value in {"ROOT": tmp_path, "VENV": venv, "STAMP": venv / ".ready"}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.delenv("RWKV_TPU_ANY_TORCH", raising=False)
    return module


def report(requires):
    """A pip that reports a torch with these requirements."""
    found = {"install": [{"metadata": {"name": "torch", "version": "2.13.0", "requires_dist": requires}}]}
    return lambda *_: [sys.executable, "-c", f"print({json.dumps(found)!r})"]


def test_cuda_only(bootstrap, monkeypatch):
    """Where the registry has torch with CUDA only, setting up stops and says how to get the CPU build."""
    monkeypatch.setattr(bootstrap, "pip", report(["filelock", "nvidia-cublas==13.0; platform_system == 'Linux'"]))
    with pytest.raises(SystemExit) as stop:
        bootstrap.check_torch()
    assert "Get the CPU build" in stop.value.code
    assert "torch-2.13.0+cpu" in stop.value.code
    monkeypatch.setenv("RWKV_TPU_ANY_TORCH", "1")
    bootstrap.check_torch()


def test_cpu_build(bootstrap, monkeypatch):
    """A torch without CUDA packages is welcome."""
    asked = []
    pip = report(["filelock", "sympy"])
    monkeypatch.setattr(bootstrap, "pip", lambda *arguments: asked.append(arguments) or pip())
    bootstrap.check_torch()
    assert "--dry-run" in asked[0]


def test_no_torch_at_all(bootstrap, monkeypatch):
    """Where pip finds none, setting up stops."""
    monkeypatch.setattr(bootstrap, "pip", lambda *_: [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(SystemExit, match="could not find torch"):
        bootstrap.check_torch()


def test_the_stamp_decides(bootstrap, tmp_path):
    """An environment counts only with the stamp of the present constraints, and half a one never does."""
    wanted = bootstrap.stamp()
    assert not bootstrap.ready(wanted)
    bootstrap.VENV.mkdir()
    assert not bootstrap.ready(wanted)
    bootstrap.STAMP.write_text(wanted)
    assert bootstrap.ready(wanted)
    (tmp_path / "constraints.txt").write_text("numpy==0")
    assert not bootstrap.ready(bootstrap.stamp())


def test_a_half_made_environment_is_made_anew(bootstrap, monkeypatch):
    """What a kill left behind is removed before the next try; a failing step leaves no stamp."""
    bootstrap.VENV.mkdir()
    (bootstrap.VENV / "half").write_text("")
    steps = []

    def run(*command):
        assert not (bootstrap.VENV / "half").exists()
        steps.append(command)
        if "install" in command:
            sys.exit("no network")
        bootstrap.VENV.mkdir()

    monkeypatch.setattr(bootstrap, "run", run)
    monkeypatch.setattr(bootstrap, "check_torch", lambda: None)
    with pytest.raises(SystemExit, match="no network"):
        bootstrap.main()
    assert len(steps) == 2
    assert not bootstrap.ready(bootstrap.stamp())


def test_a_failing_step_is_shown(bootstrap):
    """The command that failed is named."""
    with pytest.raises(SystemExit) as stop:
        bootstrap.run(sys.executable, "-c", "raise SystemExit(3)")
    assert "SystemExit(3)" in stop.value.code


def test_make_tells_what_it_can():
    """``make`` alone teaches and changes nothing."""
    done = subprocess.run(["/usr/bin/env", "make", "-C", str(ROOT)], capture_output=True, text=True, check=True)
    for word in ("make run", "make test", "make soak"):
        assert word in done.stdout
