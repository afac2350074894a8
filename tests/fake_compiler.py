"""A model of one layer, and a toolchain whose tools are scripts that do as the variable FAKE says."""

import dataclasses
import os
import sys
import time

from compile.compiler import Job
from compile.export import export
from compile.graphs.model import Rwkv7
from compile.identity import hash_arrays
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.toolchain import Toolchain
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic
from tests.a_receipt import a_receipt

SHAPE = ModelShape(
    n_layer=1, n_embd=128, head_size=64, n_ffn=128, n_vocab=16, ranks=LoraRanks(decay=8, rate=8, value=8, gate=8)
)
ARRAYS = {name: tensor.numpy() for name, tensor in synthetic(SHAPE).tensors.items()}

TOOL = """
import os, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
tool = os.path.basename(sys.argv[0])
print("the words of", tool, flush=True)
what = os.environ["FAKE"]
def sleep():
    import subprocess
    with open("helper.part", "w") as file:
        file.write(str(subprocess.Popen(["/bin/sleep", "600"]).pid))
    os.rename("helper.part", "helper")
    time.sleep(600)
if what == tool + ":exit":
    sys.exit(3)
if what == tool + ":abort":
    os.abort()
if what == tool + ":full":
    print("OSError: [Errno 28] No space left on device")
    sys.exit(1)
if what == tool + ":sleep":
    sleep()
if what == tool + ":silent":
    sys.exit(0)
if tool == "model_transform.py":
    text = 'module.weight_file = "top_weight.npz"\\n' + open(os.environ["LOCATIONS"]).read()
    open(options["--mlir"], "w").write(text)
    open("top_weight.npz", "wb").write(b"weights")
else:
    prefix = "decode_bm1684x_f16_"
    open(prefix + "tpu.mlir", "w").write("x")
    if what == "codegen":
        sys.exit(1)
    open(prefix + "final.mlir", "w").write("y")
    if what == "slow codegen":
        time.sleep(1)
    if what == "codegen:sleep":
        sleep()
    open(options["--model"], "wb").write(b"bmodel of " + os.environ.get("SALT", "").encode())
    if what != "no profile":
        open("compiler_profile_0.txt", "w").write(
            "API_END total_cycle:1000|b:2|g:3\\n"
            "GDMA SUMMARY : |dr[0] S2L:10|dr[1] L2S:20|dr[2] S2S:30|dr[3] L2L:0\\n"
            "flops: 7, runtime: 0.001ms, ComputationAbility: 1T\\n"
        )
"""


class SlowExport(Rwkv7):
    """Takes as many seconds to build as the variable SLOW_EXPORT says."""

    def __init__(self, *arguments, **options):
        """Sleep, then build."""
        deadline = time.monotonic() + float(os.environ["SLOW_EXPORT"])
        while time.monotonic() < deadline:
            time.sleep(0.01)
        super().__init__(*arguments, **options)


def plain_job():
    """Return a decode graph of the model, for a toolchain to be put in."""
    return Job(
        arrays=ARRAYS,
        arrays_sha256=hash_arrays(ARRAYS),
        variant=Rwkv7,
        spec=GraphSpec(kind=GraphKind.DECODE),
        quantization=Quantization.F16,
        toolchain=None,
    )


def fake_job(tmp_path, monkeypatch):
    """Return the job with the fake toolchain, which works until FAKE says otherwise."""
    root = tmp_path / "toolchain"
    tools = root / "lib" / "python3.10" / "site-packages" / "tpu_mlir" / "python" / "tools"
    tools.mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "bin" / "python").symlink_to(sys.executable)
    for tool in ("model_transform", "model_deploy"):
        (tools / f"{tool}.py").write_text(TOOL)
    names = export(Rwkv7(ARRAYS, T=1, every_position=True), tmp_path / "m.onnx")
    (tmp_path / "locations").write_text("".join(f'loc("{name}")\n' for name in names))
    monkeypatch.setenv("LOCATIONS", str(tmp_path / "locations"))
    monkeypatch.setenv("FAKE", "work")
    return dataclasses.replace(plain_job(), toolchain=Toolchain(root, a_receipt("0.0")))
