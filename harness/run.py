"""One run of the suites: its options made into things, its bmodels compiled, its device opened."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING

import pytest

from compile.compiler import Bmodel, CompileError, compile_graph
from compile.spec import Quantization
from compile.toolchain import find
from harness.cases import Case, Narrowed, load_grid
from harness.checkpoints import open_model
from harness.device.canary import make_canary
from harness.device.guard import Guard
from harness.device.place import open_place
from harness.embedding import embedding_for
from harness.hard import hard
from harness.jobs import compile_case
from harness.limits import load_limits
from harness.ops.case import load_ops
from harness.oracle import Oracles
from harness.own.export import judge_export
from harness.own.onnx_port import OnnxPort
from harness.own.options import NOTHING, Own
from harness.paths import cache_folder
from reports.schema import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from compile.options import Option
    from harness.check import Check
    from harness.checkpoints import Model
    from harness.targets.torch import ReferenceTarget
    from runtime.engine import Engine
    from tokenizer.codec import Codec

RUN = pytest.StashKey["SuiteRun"]()
"""Where a pytest configuration keeps its run."""


class SuiteRun:
    """What a run works with.

    One engine is open at a time: simulators on one machine starve each other, and a board is one device.

    Attributes:
        place: where bmodels run.
        port: somebody else's bmodels in place of ours; None where there are none.
        guard: watches over a board; None where there is none to watch.
        folder: where this run's files go; None before the first test.
        load_s: wall time of opening the device and loading bmodels into it, when that was last done.
    """

    def __init__(
        self,
        *,
        device: str,
        libsophon: Path | None,
        checkpoint: Path | None,
        codec: Codec | None,
        grid: str,
        narrowed: Narrowed,
        toolchain: str,
        stage_timeout_s: float,
        say: Callable[[str], None],
        own: Own = NOTHING,
    ) -> None:
        """Check every option at once: a typing mistake must not wait for the first compile.

        Raises:
            NoBoardError, GridError, OptionError, ToolchainError, CheckpointError, CodecError, MapError, BadBmodel: an
                option that cannot be met.
        """
        self.port = own.open(checkpoint, codec)
        self.grid = self.port.grid if self.port else load_grid(grid, narrowed)
        self.ops = () if self.port else load_ops(self.grid.name)
        self.toolchain = find(toolchain, cache_folder())
        self.place = open_place(device, libsophon, self.toolchain.libraries)
        self.model = self.port.model if self.port else open_model(checkpoint, codec)
        self.limits, self.limits_sha256 = load_limits()
        self._say = say
        self._stage_timeout_s = stage_timeout_s
        self._oracles: dict[str, Oracles] = {}
        self._compiled: dict[str, Bmodel | CompileError] = {}
        self._engine: tuple[tuple[str, ...], Engine] | None = None
        self._left: Engine | None = None  # its device is given back, its worker may not have ended yet
        self._remarks: set[str] = set()  # said already
        self.folder: Path | None = None
        self.load_s = float("nan")
        self.guard = Guard(self.place, lambda: make_canary(self.toolchain, say=say)) if self.place.watched else None

    @cached_property
    def hard(self) -> Model:
        """The checkpoint with extremes planted."""
        return hard(self.model)

    def oracle(
        self, quantization: Quantization, options: Iterable[Option] = (), model: Model | None = None
    ) -> ReferenceTarget:
        """What bmodels of a precision, made with *options*, are judged against; of the checkpoint or a *model*."""
        checkpoint = (model or self.model).checkpoint
        return self._oracles.setdefault(checkpoint.sha256, Oracles(checkpoint)).of(quantization, options)

    def compiled(self, case: Case, model: Model | None = None) -> Bmodel:
        """The case's bmodel, of the checkpoint or of another *model*.

        An error is remembered, so that a graph that does not compile is tried once a run.

        Raises:
            CompileError: a stage of the compile failed.
        """
        of = model or self.model
        key = f"{case.id} of {of.checkpoint.name}"
        if key not in self._compiled:
            try:
                if isinstance(self.port, OnnxPort):
                    job = self.port.job(case, self.toolchain)
                    found = compile_graph(job, cache_folder(), say=self._say, timeout_s=self._stage_timeout_s)
                else:
                    found = compile_case(
                        case, of, self.toolchain, cache_folder(), say=self._say, timeout_s=self._stage_timeout_s
                    )
                self._compiled[key] = found
            except CompileError as error:
                self._compiled[key] = error
        kept = self._compiled[key]
        if isinstance(kept, CompileError):
            raise kept
        return kept

    def engine(self, check: Check, *cases: Case, model: Model | None = None) -> Engine:
        """An engine with the nets of *cases* loaded; *check* learns what it consists of.

        The nets are of the checkpoint, or of another *model*.

        Raises:
            CompileError: a graph does not compile.
            RuntimeFault: the bmodels do not load.
        """
        wanted, opened = self._what_to_load(check, cases, model)
        check.stage = Stage.LOAD
        if self._engine and (self._engine[0] != wanted or not self._engine[1].alive):
            self.close()
        if self._engine is None:
            start = time.perf_counter()
            self._engine = wanted, opened()
            self.load_s = time.perf_counter() - start
            for remark in set(self._engine[1].remarks) - self._remarks:
                self._say(f"doubtful: {remark}")
                self._remarks.add(remark)
        engine = self._engine[1]
        versions = engine.versions
        check.runtime = {"kind": versions.kind.value, "libbmlib": versions.libbmlib, "libbmrt": versions.libbmrt}
        check.runtime["driver"] = "none" if versions.driver is None else str(versions.driver)
        check.runtime |= {file.path.rpartition("/")[2] + "_sha256": file.sha256 for file in versions.libraries}
        if engine.remarks:
            check.runtime["remarks"] = "; ".join(engine.remarks)
        check.stage = Stage.RUN
        return engine

    def _what_to_load(
        self, check: Check, cases: tuple[Case, ...], model: Model | None
    ) -> tuple[tuple[str, ...], Callable[[], Engine]]:
        """What an engine of *cases* consists of, and what opens it; *check* learns of it."""
        wanted = tuple(sorted(case.id for case in cases))
        port = self.port
        check.stage = Stage.EXPORT
        if isinstance(port, OnnxPort):
            for case in cases:
                judge_export(port, case, self.oracle(Quantization.F32), self.limits)
        elif port is not None:
            check.bmodel_sha256 = port.sha256_of(cases[0])
            return wanted, lambda: self.place.open(
                list(port.files), assemble=port.contract(cases), embedding=port.embedding
            )
        check.bmodels = [self.compiled(case, model) for case in cases]
        check.bmodel_sha256 = check.bmodels[0].result.bmodel_sha256
        files = [bmodel.path for bmodel in check.bmodels]
        if isinstance(port, OnnxPort):
            return wanted, lambda: self.place.open(
                files, assemble=port.contract(cases, types=False), embedding=port.embedding
            )
        wanted = tuple(sorted(bmodel.result.key for bmodel in check.bmodels))
        return wanted, lambda: self.place.open(files, embedding=embedding_for(cases, model or self.model))

    def end(self) -> None:
        """Give everything back: engine, place, lock; twice does nothing."""
        with ExitStack() as stack:  # whatever fails, the rest is given back
            if self.guard is not None:
                stack.callback(self.guard.release)
            stack.callback(self.place.close)
            stack.callback(self._wait_for_left)
            stack.callback(self.close)

    def close(self) -> None:
        """Close the open engine, if any; its worker may end while the next works."""
        if self._engine is not None:
            try:
                self._wait_for_left()
            finally:
                self._left, self._engine = self._engine[1], None
                self._left.leave()

    def _wait_for_left(self) -> None:
        if self._left is not None:
            engine, self._left = self._left, None
            engine.close()
