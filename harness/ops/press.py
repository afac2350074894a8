"""Compiles operations and computes them at every arrow: by the compiler's two interpreters, and on a device."""

from __future__ import annotations

import re
import shlex
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import onnx

from compile.process import tail
from compile.stages import Stage
from compile.tool_server import ToolServer
from harness.ops.block import exact
from harness.ops.graph import Graph
from reports import schema
from runtime.faults import RuntimeFault
from runtime.plain import PlainEngine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from compile.toolchain import Toolchain
    from harness.ops.case import OpCase
    from runtime.libraries import Libraries

TIMEOUT_S = 120.0
"""For each step of one operation, which takes about a second."""

_LOADED_AT_MOST = 100  # each takes some MB of the simulated chip's 4 GB

ARROWS = ("top", "tpu", "cmodel")


class ArrowError(RuntimeError):
    """A step on the way to an arrow's numbers failed: says at which stage, how, and how to see it again."""

    def __init__(self, stage: schema.Stage, message: str) -> None:
        """Keep the stage for whoever records the outcome."""
        super().__init__(message)
        self.stage = stage


Result = list[np.ndarray] | ArrowError
"""The outputs at an arrow, or why there are none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case at each arrow, and the files of the compile."""

    results: dict[str, Result]
    folder: Path


class Press:
    """Takes operations one by one. A context manager; tools and device are opened when first needed.

    Each operation is one graph, one compile and one bmodel, so that no fault hides another.
    """

    def __init__(self, toolchain: Toolchain, libraries: Libraries) -> None:
        """*libraries* are the device's."""
        self._toolchain = toolchain
        self._libraries = libraries
        self._scratch = tempfile.TemporaryDirectory(prefix="rwkv-tpu-ops-")
        self._folder = Path(self._scratch.name)
        self._server: ToolServer | None = None
        self._engine: PlainEngine | None = None
        self._done: dict[str, Outcome] = {}
        self._loaded = 0

    def __enter__(self) -> Self:
        """Return the press."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything."""
        self.close()

    def close(self) -> None:
        """End all processes and remove all files; closing twice does nothing."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._engine is not None:
            engine, self._engine = self._engine, None
            engine.close()
        self._scratch.cleanup()

    def outcome(self, case: OpCase) -> Outcome:
        """Compile and compute a case at all arrows, or recall it."""
        if case.id not in self._done:
            inputs = list(case.of_block.data(case.shape)[0].values())
            self._done[case.id] = self.press(case.id, model_of(case), inputs, case.precision.value)
        return self._done[case.id]

    def press(
        self,
        name: str,
        model: onnx.ModelProto,
        inputs: Sequence[np.ndarray],
        quantize: str,
        flags: Sequence[str] = (),
    ) -> Outcome:
        """Compile and compute any graph at all arrows.

        Args:
            name: one not used before; of the net, too.
            model: the graph.
            inputs: in its order.
            quantize: the argument of ``model_deploy``.
            flags: more of its arguments.
        """
        folder = self._folder / name
        folder.mkdir()
        np.savez(folder / "inputs.npz", *inputs)
        onnx.save(model, str(folder / "model.onnx"))
        net = re.sub(r"\W", "_", name)
        transform = ["--model_name", net, "--model_def", "model.onnx", "--mlir", "top.mlir"]
        top = self._computed(folder, Stage.TRANSFORM, transform, "top.mlir")
        if not (folder / "top.mlir").is_file():
            return Outcome(dict.fromkeys(ARROWS, top), folder)
        deploy = ["--mlir", "top.mlir", "--chip", "bm1684x", "--quantize", quantize, "--model", "op.bmodel", *flags]
        dialect = f"{net}_bm1684x_{quantize.lower()}_tpu.mlir"
        tpu = self._computed(folder, Stage.LOWER, [*deploy, "--not_gen_bmodel"], dialect)
        run = self._run(folder, deploy, inputs) if (folder / dialect).is_file() else tpu
        return Outcome({"top": top, "tpu": tpu, "cmodel": run}, folder)

    def _computed(self, folder: Path, stage: Stage, arguments: list[str], mlir: str) -> Result:
        """Make an MLIR file with a tool, and have the interpreter compute it."""
        tool = "model_transform" if stage is Stage.TRANSFORM else "model_deploy"
        try:
            self._tool(folder, stage, tool, arguments, mlir)
            self._tool(folder, stage, "interpret", [mlir, "inputs.npz", f"{mlir}.npz"], f"{mlir}.npz")
        except ArrowError as error:
            return error
        return _outputs(folder / f"{mlir}.npz")

    def _run(self, folder: Path, deploy: list[str], inputs: Sequence[np.ndarray]) -> Result:
        try:
            self._tool(folder, Stage.CODEGEN, "model_deploy", deploy, "op.bmodel")
        except ArrowError as error:
            return error
        stage = schema.Stage.LOAD
        try:
            engine = self._opened()
            net = engine.load(folder / "op.bmodel")
            stage = schema.Stage.RUN
            return engine.call(net, inputs)
        except (RuntimeFault, ValueError) as error:
            return ArrowError(stage, str(error))

    def _opened(self) -> PlainEngine:
        """An engine that answers, with room for one bmodel more: none is ever unloaded."""
        if self._engine is not None and (self._loaded == _LOADED_AT_MOST or not self._engine.alive):
            engine, self._engine = self._engine, None
            with suppress(RuntimeFault):
                engine.close()
        if self._engine is None:
            self._engine, self._loaded = PlainEngine(self._libraries, timeout_s=TIMEOUT_S), 0
        self._loaded += 1
        return self._engine

    def _tool(self, folder: Path, stage: Stage, tool: str, arguments: list[str], product: str) -> None:
        if self._server is None:
            self._server = ToolServer(self._toolchain)
        log = folder / "log"
        done = self._server.run(tool, arguments, folder=folder, log=log, timeout_s=TIMEOUT_S)
        if done.status == 0 and (folder / product).is_file():
            return
        how = done.ending if done.status else f"left no {product}"
        raise ArrowError(schema.Stage(stage.value), f"{tool} {shlex.join(arguments)}: {how}\n{tail(log)}")


def model_of(case: OpCase, name: str | None = None) -> onnx.ModelProto:
    """The ONNX of a case; outputs are named by the graph, in order."""
    block = case.of_block
    inputs, weights = block.data(case.shape)
    wide = {key: value.astype(np.float64) for key, value in inputs.items()}
    shapes = [
        array.shape for array in block.formula(wide, {k: w.astype(np.float64) for k, w in weights.items()}, exact)
    ]
    graph = Graph(inputs, **({"opset": block.opsets[case.idiom]} if case.idiom in block.opsets else {}))
    outputs = block.idioms[case.idiom](graph, {key: key for key in inputs}, weights, case.shape)
    return graph.model(dict(zip(outputs, shapes, strict=True)), name or case.id)


def _outputs(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
