"""A toolchain that compiles nothing: its tools say what options they have."""

import sys
from pathlib import Path

from compile.toolchain import Toolchain
from tests.a_receipt import a_receipt

TOOL = """
import argparse
parser = argparse.ArgumentParser()
{options}
parser.parse_args()
"""


def fake_toolchain(folder: Path, version: str, options: str = "") -> Toolchain:
    """Make one in *folder*; *options* are lines of the tools' files, such as ``parser.add_argument("--opt")``."""
    toolchain = Toolchain(folder / version, a_receipt(version))
    tools = toolchain.package / "python" / "tools"
    if not tools.is_dir():
        tools.mkdir(parents=True)
        toolchain.python.parent.mkdir(parents=True)
        toolchain.python.symlink_to(sys.executable)
        for tool in ("model_transform", "model_deploy"):
            (tools / f"{tool}.py").write_text(TOOL.format(options=options))
    return toolchain
