"""One run of the suites: its options made into things, its bmodels compiled, its device opened."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import pytest
import torch

from compile.compiler import Bmodel, CompileError, Job, compile_graph
from compile.flags import needed_flags
from compile.toolchain import find
from harness.cases import VARIANTS, Case, load_grid
from harness.checkpoints import open_model
from harness.device.board import find_board
from harness.limits import load_limits
from harness.paths import cache_folder
from harness.targets.torch import ReferenceTarget
from reference.fast import Fast
from reports.schema import Stage
from runtime.engine import Engine
from runtime.libraries import Libraries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.check import Check
    from tokenizer.codec import Codec

CMODEL = "cmodel"

RUN = pytest.StashKey["SuiteRun"]()
"""Where a pytest configuration keeps its run."""


class SuiteRun:
    """What a run works with.

    One engine is open at a time: simulators on one machine starve each other, and a board is one device.
    """

    def __init__(
        self,
        *,
        device: str,
        checkpoint: Path | None,
        codec: Codec | None,
        grid: str,
        variant: str | None,
        toolchain: str,
        say: Callable[[str], None],
    ) -> None:
        """Check every option at once: a typing mistake must not wait for the first compile.

        Raises:
            NoBoardError, GridError, ToolchainError, CheckpointError, CodecError: an option that cannot be met.
        """
        if device != CMODEL and not device.isdecimal():
            raise ValueError(f"--device {device}: should be {CMODEL!r} or the number of a board")
        self.target = device
        self.board = None if device == CMODEL else int(device)
        board_libraries = None if self.board is None else find_board(self.board)
        self.grid = load_grid(grid, variant)
        self.toolchain = find(toolchain, cache_folder())
        self.libraries = board_libraries or Libraries.cmodel(self.toolchain.libraries)
        self.model = open_model(checkpoint, codec)
        self.limits, self.limits_sha256 = load_limits()
        self._say = say
        self._compiled: dict[str, Bmodel | CompileError] = {}
        self._engine: tuple[tuple[str, ...], Engine] | None = None

    @cached_property
    def oracle(self) -> ReferenceTarget:
        """The reference, in float64: the rounding of the oracle must not blur a verdict."""
        return ReferenceTarget(Fast(self.model.checkpoint, torch.float64))

    def compiled(self, case: Case) -> Bmodel:
        """The case's bmodel; an error is remembered, so that a graph that does not compile is tried once a run.

        Raises:
            CompileError: a stage of the compile failed.
        """
        if case.id not in self._compiled:
            job = Job(
                arrays=self.model.arrays,
                arrays_sha256=self.model.arrays_sha256,
                variant=VARIANTS[case.variant],
                spec=case.graph,
                quantization=case.quantization,
                flags=needed_flags(self.model.arrays),
                toolchain=self.toolchain,
            )
            try:
                self._compiled[case.id] = compile_graph(job, cache_folder(), say=self._say)
            except CompileError as error:
                self._compiled[case.id] = error
        found = self._compiled[case.id]
        if isinstance(found, CompileError):
            raise found
        return found

    def engine(self, check: Check, *cases: Case) -> Engine:
        """An engine with the nets of *cases* loaded; *check* learns what it consists of.

        Raises:
            CompileError: a graph does not compile.
            RuntimeFault: the bmodels do not load.
        """
        check.stage = Stage.EXPORT
        check.bmodels = [self.compiled(case) for case in cases]
        check.stage = Stage.LOAD
        wanted = tuple(sorted(bmodel.result.key for bmodel in check.bmodels))
        if self._engine and (self._engine[0] != wanted or not self._engine[1].alive):
            self.close()
        if self._engine is None:
            paths = [bmodel.path for bmodel in check.bmodels]
            self._engine = wanted, Engine.open(self.libraries, paths, device=self.board or 0)
        engine = self._engine[1]
        versions = engine.versions
        check.runtime = {"kind": versions.kind.value, "libbmlib": versions.libbmlib, "libbmrt": versions.libbmrt}
        check.runtime |= {file.path.rpartition("/")[2] + "_sha256": file.sha256 for file in versions.libraries}
        check.stage = Stage.RUN
        return engine

    def close(self) -> None:
        """Close the open engine, if any."""
        if self._engine is not None:
            engine, self._engine = self._engine[1], None
            engine.close()
