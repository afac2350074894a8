"""The console command finds its subcommands, and imports no more than the one that is called needs."""

import subprocess
import sys

import pytest

from harness.cli import SUBCOMMANDS, main


def run(monkeypatch, *arguments):
    """The exit status of ``rwkv-tpu ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_its_help(monkeypatch, capsys, name):
    """It is where the table says, and says how it is used."""
    assert run(monkeypatch, name, "--help") == 0
    assert f"Usage: rwkv-tpu {name} " in " ".join(capsys.readouterr().out.split())


def test_the_help_lists_all(monkeypatch, capsys):
    """A command that nobody can find is none."""
    assert run(monkeypatch, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in SUBCOMMANDS:
        assert any(line.lstrip("│ ").startswith(f"{name} ") for line in lines), name


def test_a_typing_error(monkeypatch, capsys):
    """The nearest name is told."""
    assert run(monkeypatch, "gat") == 2
    assert "Did you mean 'gate'?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["report", "absent"], ["history", "show", "--db", "absent"], ["gate", "a", "b"]])
def test_nobody_waits_for_torch(tmp_path, arguments):
    """Commands that compute nothing start in a moment."""
    program = "import sys; from harness.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr
