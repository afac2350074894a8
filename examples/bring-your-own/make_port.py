"""Write the model that ships as the common BM1684X port lays it out: an ONNX file for each net, and one bmodel of both.

    python examples/bring-your-own/make_port.py port/
    pytest suites/ --bmodel port/port.bmodel --io examples/bring-your-own/bm1684x-port.toml
    pytest suites/ --onnx port/rwkv_forward_one.onnx,port/rwkv_forward_seq.onnx --io port/onnx.toml

The graphs are our own ``loop`` variant, with the inputs and outputs of that port.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compile.compiler import Job, compile_graph
from compile.export import export
from compile.graphs.loop import Rwkv7Loop
from compile.join import joined
from compile.release import DEFAULT_RELEASE
from compile.spec import GraphKind, Quantization
from compile.toolchain import find
from harness.checkpoints import DEFAULT, open_model
from harness.paths import cache_folder

if TYPE_CHECKING:
    from torch import Tensor

MAP = Path(__file__).with_name("bm1684x-port.toml")
TABLE = "f32_operations.txt"
"""The operations that must stay in float32, as the compiler's table names them."""


class PortGraph(Rwkv7Loop):
    """Inputs ``idx`` and ``input_stateK_i``, outputs ``out`` and ``output_stateK_i``."""

    def example_inputs(self) -> dict[str, Tensor]:
        """What a call takes, by name."""
        token, *states = super().example_inputs().values()
        return {"idx": token} | {f"input_state{n % 3}_{n // 3}": state for n, state in enumerate(states)}

    def output_names(self) -> list[str]:
        """What it gives."""
        return ["out", *(f"output_state{n % 3}_{n // 3}" for n in range(3 * self.dims.L))]


@dataclass(frozen=True)
class PortNet:
    """A net under the name that the port gives it."""

    name: str
    kind: GraphKind
    T: int = 1


NETS = (PortNet("rwkv_forward_one", GraphKind.DECODE), PortNet("rwkv_forward_seq", GraphKind.PREFILL, 16))


def main(folder: Path, variant: type[Rwkv7Loop] = PortGraph) -> None:
    """Write the files into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    model, toolchain = open_model(None), find(DEFAULT_RELEASE, cache_folder())
    jobs, table = [], ""
    for net in NETS:
        graph = variant(model.arrays, T=net.T, every_position=net.kind is GraphKind.DECODE)
        operations = export(graph, folder / f"{net.name}.onnx")
        table += "".join(f"{operation} F32\n" for operation in operations)
        jobs.append(
            Job(
                arrays=model.arrays,
                arrays_sha256=model.arrays_sha256,
                variant=variant,
                spec=net,
                quantization=Quantization.F16,
                toolchain=toolchain,
            )
        )
    (folder / TABLE).write_text(table)
    (folder / "onnx.toml").write_text(onnx_map(MAP.read_text()))
    bmodel = joined(
        jobs,
        cache_folder(),
        what="port",
        compiled=lambda jobs: [compile_graph(job, cache_folder(), say=print) for job in jobs],
    )
    shutil.copy(bmodel.path, folder / "port.bmodel")


def onnx_map(text: str) -> str:
    """The map for the ONNX files: it lies beside them, and names what the compiler must leave in float32."""
    kept = [line for line in text.splitlines() if not line.startswith("checkpoint =")]
    return "\n".join([f"checkpoint = {json.dumps(str(DEFAULT))}", f'f32_operations = "{TABLE}"', *kept, ""])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
