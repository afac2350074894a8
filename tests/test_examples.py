"""The examples of a nightly pass their own linters, and name commands and options that exist."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NIGHTLY = ROOT / "examples" / "nightly"
INSTALLED = "/opt/rwkv-tpu-harness/.venv/bin/rwkv-tpu"
UNITS = "rwkv-tpu-nightly.service", "rwkv-tpu-nightly.timer"


def verify(folder):
    """What systemd says of the units in a folder."""
    if shutil.which("systemd-analyze") is None:
        message = "systemd-analyze is not there: it comes with Debian's package systemd"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    units = [str(folder / name) for name in UNITS]
    command = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def written(folder, change=lambda text: text):
    """The units in *folder*; the program that they start is one that is there."""
    for name in UNITS:
        text = (NIGHTLY / name).read_text().replace(INSTALLED, "/bin/true")
        (folder / name).write_text(change(text))
    return folder


def test_units(tmp_path):
    """The linter of systemd has nothing to say."""
    assert INSTALLED in (NIGHTLY / UNITS[0]).read_text()
    assert verify(written(tmp_path)) == (0, "")


def test_wrong_units_are_seen(tmp_path):
    """The linter does look: a misspelt key, and a time that is none."""
    spoilt = written(tmp_path, lambda text: text.replace("KillMode", "KilMode").replace("02:30:00", "25:30:00"))
    said = verify(spoilt)[1]
    assert "KilMode" in said
    assert "25:30:00" in said


def actionlint(workflow):
    """What actionlint says of a workflow, and shellcheck of its scripts where that is there."""
    program = Path(sys.executable).with_name("actionlint")
    command = [str(program), "-no-color", "-config-file", str(NIGHTLY / "actionlint.yaml"), str(workflow)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_workflow():
    """The linter of workflows has nothing to say."""
    assert actionlint(NIGHTLY / "nightly.yml") == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("if: always()", "if: allways()", 'undefined function "allways"'),
        ("runner.os", "runner.oss", 'property "oss" is not defined'),
        ("linux, bm1684x]", "linux, bm1685x]", 'label "bm1685x" is unknown'),
        ("actions/checkout@v5", "actions/checkout@v4", "is deprecated"),
    ],
)
def test_wrong_workflows_are_seen(tmp_path, right, wrong, said):
    """The linter does look."""
    text = (NIGHTLY / "nightly.yml").read_text()
    assert right in text
    (tmp_path / "nightly.yml").write_text(text.replace(right, wrong))
    code, words = actionlint(tmp_path / "nightly.yml")
    assert code == 1
    assert said in words


@pytest.mark.parametrize("name", [UNITS[0], "nightly.yml"])
def test_options_exist(name):
    """Every option that an example gives to the nightly is one of its own, or of the suites."""
    text = (NIGHTLY / name).read_text()
    calls = re.findall(r"rwkv-tpu nightly (.*)", text)
    assert calls
    own = (ROOT / "harness" / "commands" / "nightly.py").read_text() + (ROOT / "harness" / "plugin.py").read_text()
    for option in {option for call in calls for option in re.findall(r"--([a-z-]+)", call)}:
        assert f'"--{option}"' in own or re.search(rf"\b{option.replace('-', '_')}: Annotated", own), option


def test_no_code_of_the_gate_is_swallowed(tmp_path):
    """Whatever a night ends with, the scripts of the workflow and the service end with it too."""
    workflow = (NIGHTLY / "nightly.yml").read_text()
    scripts = re.findall(r"run: \|\n((?: {10}.*\n)+)", workflow)
    scripts = [script for script in scripts if "rwkv-tpu nightly" in script]
    assert len(scripts) == 2
    assert all("--first-night-passes" in script for script in scripts)
    program = tmp_path / ".venv" / "bin" / "rwkv-tpu"
    program.parent.mkdir(parents=True)
    for code in range(5):
        program.write_text(
            f"#!/bin/sh\nmkdir -p nightly/nights/n; echo told > nightly/nights/n/gate.txt; exit {code}\n"
        )
        program.chmod(0o755)
        for script in scripts:
            told = {
                **os.environ,
                "GRID": "smoke",
                "NIGHTS": "nightly",
                "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
            }
            done = subprocess.run(
                [shutil.which("bash"), "-e", "-c", script], cwd=tmp_path, env=told, check=False, timeout=60
            )
            assert done.returncode == code, script
    service = (NIGHTLY / UNITS[0]).read_text()
    assert "SuccessExitStatus" not in service
    assert "--first-night-passes" in service
