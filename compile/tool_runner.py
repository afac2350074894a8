"""Runs a Python tool of TPU-MLIR as if it had been started itself: ``python tool_runner.py FILE ARGUMENT…``.

Runs in the toolchain's own Python, never in ours. One thing is different from the bare tool: after its work,
``model_transform`` parses the MLIR that it has written, and asks each operation for its text, for a name that nobody
reads; for each, MLIR numbers all values of the module. Of prefill of 256 tokens at 0.1B, 7,000 operations, that was
still going on after eight minutes, where the work itself had taken less than three. ``model_deploy`` begins with it.
"""

import importlib
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run the tool."""
    del sys.argv[0]
    tool = Path(sys.argv[0])
    sys.path[0] = str(tool.parent)
    try:
        operation = importlib.import_module("tpu_mlir.python.utils.mlir_parser").Operation
    except (ImportError, AttributeError):
        pass  # the tool itself will say what is wrong
    else:
        operation.loc = staticmethod(lambda _: "")
    runpy.run_path(str(tool), run_name="__main__")


main()
