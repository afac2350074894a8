"""How fast a toolchain lets weights pass: matrix-vector products of many sizes, compiled and their cycles read.

A product of one token needs each weight once and computes next to nothing, so its rate is the compiler's prediction of
what memory gives. The best of them is what :mod:`compile.floor` divides by. Predictions of the cycle profile, as
everything in it; nothing here is measured.
"""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compile.compiler import STAGE_TIMEOUT_S
from compile.floor import matrix_bytes
from compile.process import run, tail
from compile.profile import ProfileError, read_profile
from compile.spec import Quantization

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from compile.toolchain import Toolchain

SIZES = ((768, 768), (768, 3072), (2048, 2048), (2048, 8192), (2560, 10240), (768, 65536))
"""Inputs and outputs of a product: the matrices of released models, the smallest first."""

QUANTIZATIONS = (Quantization.F16, Quantization.W8F16, Quantization.W4F16)

_OPSET = 17
_IR_VERSION = 8


class SweepError(RuntimeError):
    """A product does not compile; the message names it and shows the log's last lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One matrix-vector product and what the compiler predicts for it.

    Attributes:
        minimum_bytes: the matrix once, as it is stored, the vector in and the vector out, both float32.
    """

    inputs: int
    outputs: int
    quantization: Quantization
    minimum_bytes: int
    predicted_cycles: int

    @property
    def bytes_per_ns(self) -> float:
        """What it needs over what it takes: predicted, and the same number in GB/s."""
        return self.minimum_bytes / self.predicted_cycles


class Rates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one sweep found, and with which compiler."""

    compiler: str  # release, source commit and build date
    wheel_sha256: str
    products: tuple[Product, ...]

    @property
    def best(self) -> Product:
        """The fastest product."""
        return max(self.products, key=lambda product: product.bytes_per_ns)


def sweep(
    toolchain: Toolchain,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    quantizations: Sequence[Quantization] = QUANTIZATIONS,
    say: Callable[[str], None] = lambda _: None,
    timeout_s: float = STAGE_TIMEOUT_S,
) -> Iterator[Product]:
    """Compile the products one after the other, each tool within *timeout_s* seconds; nothing stays on disk.

    Raises:
        SweepError: one does not compile, or leaves no profile.
    """
    for inputs, outputs in sizes:
        with tempfile.TemporaryDirectory(prefix="rwkv-tpu-sweep-") as name:
            folder = Path(name)
            _write_model(folder / "product.onnx", inputs, outputs)
            transform = ["--model_name", "product", "--model_def", "product.onnx", "--mlir", "product.mlir"]
            _run(toolchain, "model_transform", transform, folder, timeout_s)
            for quantization in quantizations:
                say(f"{inputs} x {outputs} {quantization.value} …")
                deploy = ["--mlir", "product.mlir", "--chip", "bm1684x", "--quantize", quantization.value]
                (folder / "compiler_profile_0.txt").unlink(missing_ok=True)  # of the product before
                log = _run(toolchain, "model_deploy", [*deploy, "--model", "product.bmodel"], folder, timeout_s)
                try:
                    cycles = read_profile(folder / "compiler_profile_0.txt").predicted_cycles
                except ProfileError as error:
                    raise SweepError(f"{inputs} x {outputs} {quantization.value}: {error}\n{tail(log)}") from error
                yield Product(
                    inputs=inputs,
                    outputs=outputs,
                    quantization=quantization,
                    minimum_bytes=matrix_bytes(inputs, outputs, quantization) + 4 * (inputs + outputs),
                    predicted_cycles=cycles,
                )


def _write_model(path: Path, inputs: int, outputs: int) -> None:
    """``y = x W`` of one row, W random: a constant would be compressed."""
    W = np.random.default_rng(0).normal(size=(inputs, outputs)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, outputs])],
        [numpy_helper.from_array(W, "W")],
    )
    opset = [helper.make_opsetid("", _OPSET)]
    onnx.save(helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=opset), str(path))


def _run(toolchain: Toolchain, tool: str, arguments: list[str], folder: Path, timeout_s: float) -> Path:
    """Run one of the toolchain's tools; returns its log."""
    log = folder / f"{tool}.log"
    command = [*toolchain.command(tool), *arguments]
    done = run(command, folder=folder, log=log, environment=toolchain.environment(), timeout_s=timeout_s)
    if done.status:
        raise SweepError(f"{shlex.join(command)} {done.ending}; its last lines:\n{tail(log)}")
    return log
