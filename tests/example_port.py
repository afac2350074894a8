"""The example of somebody else's port: its program as a module, and the files that it makes of the model that ships."""

import importlib.util
import sys

from compile.export import export
from harness.checkpoints import open_model
from tests.test_io_map import EXAMPLE

T = 4


def load_example():
    """The example's program, as a module."""
    spec = importlib.util.spec_from_file_location("make_port", EXAMPLE.with_name("make_port.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def write_onnx(folder):
    """Write the ONNX files for 1 and T tokens, their table, and a map; returns the two files, decode first."""
    example, model, table = load_example(), open_model(None), []
    for name, length in (("rwkv_forward_one", 1), ("rwkv_forward_seq", T)):
        table += export(example.PortGraph(model.arrays, T=length, every_position=False), folder / f"{name}.onnx")
    (folder / example.TABLE).write_text("".join(f"{operation} F32\n" for operation in table))
    text = example.onnx_map(EXAMPLE.read_text())
    (folder / "onnx.toml").write_text(text.replace("tokens = 16", f"tokens = {T}"))
    return tuple(sorted(folder.glob("*.onnx")))
