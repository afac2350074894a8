"""The layout shows the architecture: imports point one way, and the repository speaks of the project alone."""

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {"reference", "tokenizer", "compile", "runtime", "reports"}
ALLOWED = {leaf: {leaf} for leaf in LEAVES} | {"harness": LEAVES | {"harness"}, "suites": LEAVES | {"harness"}}


def imported(path):
    """Modules that a file imports, absolute names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.partition(".")[0] != "compile", f"{path}: this shadows the builtin, import from it"
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package):
    """From suites to harness to leaves; no leaf knows another."""
    ours = LEAVES | {"harness", "suites", "tests"}
    for path in (ROOT / package).rglob("*.py"):
        for module in imported(path):
            top = module.partition(".")[0]
            assert top not in ours or top in ALLOWED[package], f"{path.relative_to(ROOT)} imports {module}"
            assert top != "tpu_mlir", f"{path.relative_to(ROOT)}: tpu_mlir rewrites the environment"


def test_every_package_is_listed():
    """A folder with Python files that is missing from pyproject.toml would be missing from an install."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for package in LEAVES | {"harness"}
        for path in (ROOT / package).rglob("*.py")
    }
    assert listed == found


def test_every_dependency_is_pinned():
    """Each direct dependency has one exact version in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {name.partition(">")[0].lower().replace("_", "-") for name in wanted}
    assert names <= {name.lower().replace("_", "-") for name in pins}


def test_the_console_command_works_from_anywhere():
    """``rwkv-tpu`` runs from the root folder, and without arguments teaches."""
    command = ROOT / ".venv" / "bin" / "rwkv-tpu"
    if not command.exists():
        pytest.skip("not run from the environment that make sets up")
    done = subprocess.run([command, "toolchain", "list"], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "release" in done.stdout
    done = subprocess.run([command], cwd="/", capture_output=True, text=True, check=False)
    assert "toolchain" in done.stdout + done.stderr
    done = subprocess.run(
        [command, "toolchain", "check", "9.9.9"], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "rwkv-tpu toolchain install 9.9.9" in done.stderr
    assert "Traceback" not in done.stderr
