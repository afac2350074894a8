"""The sweep behind the floor: what it asks of a toolchain, and what it makes of the profiles."""

import sys

import onnx
import pytest

from compile.floor import matrix_bytes
from compile.spec import Quantization
from compile.sweep import Rates, SweepError, sweep
from compile.toolchain import Toolchain
from tests.a_receipt import a_receipt

TRANSFORM = """
import sys
assert sys.argv[1:] == ["--model_name", "product", "--model_def", "product.onnx", "--mlir", "product.mlir"], sys.argv
open("product.mlir", "w").write(open("product.onnx", "rb").read().hex())
"""
DEPLOY = """
import os, sys
quantization = sys.argv[sys.argv.index("--quantize") + 1]
assert not os.path.exists("compiler_profile_0.txt"), "of the product before"
cycles = {{"F16": 1000, "W4F16": 400}}[quantization]
if {works}:
    open("compiler_profile_0.txt", "w").write(f'''API_END total_cycle:{{cycles}}|b:1|g:1
GDMA SUMMARY : |dr[0] S2L:1|dr[1] L2S:1|dr[2] S2S:1|dr[3] L2L:0
flops: 1, runtime: 1ms
''')
"""


@pytest.fixture
def toolchain(tmp_path):
    """Tools that do as the compiler does, without compiling."""
    root = tmp_path / "toolchain"
    found = Toolchain(
        root,
        a_receipt(),
    )
    tools = found.package / "python" / "tools"
    tools.mkdir(parents=True)
    found.python.parent.mkdir()
    found.python.symlink_to(sys.executable)
    (tools / "model_transform.py").write_text(TRANSFORM)
    (tools / "model_deploy.py").write_text(DEPLOY.format(works=True))
    return found


def test_sweep(toolchain, tmp_path, monkeypatch):
    """Each size in each precision, cycles from its own profile, bytes from its size; nothing stays on disk."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    precisions = Quantization.F16, Quantization.W4F16
    found = list(sweep(toolchain, sizes=[(64, 8), (128, 8)], quantizations=precisions))
    assert [(one.inputs, one.quantization) for one in found] == [(i, q) for i in (64, 128) for q in precisions]
    assert [one.predicted_cycles for one in found] == [1000, 400] * 2
    assert found[3].minimum_bytes == matrix_bytes(128, 8, Quantization.W4F16) + 4 * (128 + 8)
    assert found[0].bytes_per_ns == (2 * 64 * 8 + 4 * 72) / 1000
    assert Rates(compiler="", wheel_sha256="", products=tuple(found)).best is found[3]
    assert not list((tmp_path / "scratch").iterdir())


def test_the_product(toolchain, monkeypatch):
    """One row times a matrix that is not constant."""
    kept = []
    monkeypatch.setattr("onnx.save", lambda model, path, save=onnx.save: (kept.append(model), save(model, path)))
    list(sweep(toolchain, sizes=[(64, 8)], quantizations=[Quantization.F16]))
    (model,) = kept
    onnx.checker.check_model(model)
    (W,) = model.graph.initializer
    assert list(W.dims) == [64, 8]
    assert len(set(onnx.numpy_helper.to_array(W).ravel().tolist())) > 500


def test_no_profile(toolchain):
    """A product without profile is named."""
    (toolchain.package / "python" / "tools" / "model_deploy.py").write_text(DEPLOY.format(works=False))
    with pytest.raises(SweepError, match=r"64 x 8 F16: .*left no profile"):
        list(sweep(toolchain, sizes=[(64, 8)], quantizations=[Quantization.F16]))


def test_a_tool_that_fails(toolchain):
    """A tool's last words are passed on."""
    (toolchain.package / "python" / "tools" / "model_transform.py").write_text("raise SystemExit('out of luck')")
    with pytest.raises(SweepError, match=r"(?s)model_transform.*exited with status 1.*out of luck"):
        list(sweep(toolchain, sizes=[(64, 8)]))
