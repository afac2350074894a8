"""The pytest plugin of ``pytest suites/``: options into a run, cases to tests, a record of every check."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from compile.compiler import CompileError
from compile.toolchain import ToolchainError
from harness.cases import GridError, case_of
from harness.check import CHECK, Check
from harness.device.board import NoBoardError
from harness.manifest import manifest
from harness.records import RunWriter
from harness.run import RUN, SuiteRun
from harness.summary import summary
from reference.shape import CheckpointError
from reports.csv_file import write_csv
from reports.html_page import write_html
from reports.schema import Outcome, Record, Stage, read
from runtime.faults import LibraryMissing
from tokenizer.codec import CodecError

if TYPE_CHECKING:
    from collections.abc import Generator


class SuitePlugin:
    """Registered by ``suites/conftest.py``, so that it acts on the suites alone."""

    def __init__(self, config: pytest.Config) -> None:
        """Check the options and start the run's records.

        Raises:
            pytest.UsageError: an option that cannot be met; says what was looked for.
        """
        self._config = config
        self._started = time.monotonic()
        option = config.getoption
        try:
            self.run = SuiteRun(
                device=option("--device"),
                checkpoint=option("--checkpoint"),
                codec=option("--codec"),
                grid=option("--grid"),
                variant=option("--variant"),
                toolchain=option("--toolchain"),
                say=self._say,
            )
        except (NoBoardError, GridError, ToolchainError, CheckpointError, CodecError, ValueError) as error:
            raise pytest.UsageError(str(error)) from error
        config.stash[RUN] = self.run
        self._runs = config.invocation_params.dir / option("--runs")
        self._writer: RunWriter | None = None
        self._recorded: set[str] = set()

    def _say(self, text: str) -> None:
        """Show a line at once, whatever pytest captures."""
        capture = self._config.pluginmanager.getplugin("capturemanager")
        terminal = self._config.pluginmanager.getplugin("terminalreporter")
        with ExitStack() as stack:
            if capture is not None:
                stack.enter_context(capture.global_and_fixture_disabled())
            if terminal is not None:
                terminal.ensure_newline()
                terminal.write_line(f"  {time.monotonic() - self._started:5.0f} s  {text}")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give every test that asks for a ``case`` the cases of the graphs that it is marked for."""
        if "case" not in metafunc.fixturenames:
            return
        marker = metafunc.definition.get_closest_marker("graphs")
        if marker is None:
            raise pytest.UsageError(f"{metafunc.definition.nodeid} takes a case, but is not marked with graphs(...)")
        cases = [case for case in self.run.grid.cases if case.graph.kind in marker.args]
        # Session scope groups the tests by case: each is loaded once, and what is said of it stands together.
        metafunc.parametrize("case", cases, ids=lambda case: case.id, scope="session")

    def pytest_report_header(self) -> list[str]:
        """The versions of everything that matters."""
        run, checkpoint = self.run, self.run.model.checkpoint
        shape = checkpoint.shape
        what = "BM1684X simulator (cmodel)" if run.board is None else f"BM1684X board {run.board}"
        return [
            f"harness: {version('rwkv-tpu-harness')}, torch {version('torch')}, onnx {version('onnx')}",
            f"target: {what}, libraries {run.libraries.folder}",
            f"toolchain: TPU-MLIR {run.toolchain.compiler_commit}, wheel {run.toolchain.wheel_sha256[:12]}",
            (
                f"checkpoint: {checkpoint.name}, sha256 {checkpoint.sha256[:12]}, {shape.n_layer} layers, "
                f"width {shape.n_embd}, {shape.n_head} heads of {shape.head_size}, vocabulary {shape.n_vocab}, "
                f"codec {run.model.codec.value}"
            ),
            f"grid: {run.grid.name}: {', '.join(case.id for case in run.grid.cases)}",
        ]

    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Open the records file once something will run."""
        if session.testscollected and not session.config.option.collectonly:
            run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{self.run.target}"
            header = manifest(
                run_id=run_id,
                target=self.run.target,
                toolchain=self.run.toolchain,
                model=self.run.model,
                grid=self.run.grid,
                limits_sha256=self.run.limits_sha256,
            )
            self._writer = RunWriter(self._runs / run_id, header)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Write a record for each test: of its call, or of a setup or teardown that did not pass."""
        report = yield
        if self._writer is not None and (report.when == "call" or not report.passed):
            self._writer.add(_record(item, call, report))
            self._recorded.add(item.nodeid)
        return report

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write what people read; the records get their last line only where every test has left one."""
        if self._writer is not None:
            if len(self._recorded) == session.testscollected:
                self._writer.end(int(exitstatus))
            folder = self._writer.folder
            run = read(self._writer.path)
            write_csv(run, folder / "records.csv")
            write_html(run, folder / "index.html")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """A table of the cases, and where the rest is."""
        if self._writer is None:
            return
        folder = self._writer.folder
        terminalreporter.section("RWKV-7 on BM1684X")
        terminalreporter.write(summary(read(self._writer.path), terminalreporter._tw.fullwidth))  # noqa: SLF001 - the width has no public name
        terminalreporter.write_line(f"CSV:  {folder / 'records.csv'}")
        terminalreporter.write_line(f"HTML: {folder / 'index.html'}")


def _record(item: pytest.Item, call: pytest.CallInfo[Any], report: pytest.TestReport) -> Record:
    case, check = case_of(item), item.stash.get(CHECK, Check())
    name = getattr(item, "originalname", item.name).removeprefix("test_")
    error = call.excinfo.value if call.excinfo is not None else None
    outcome, stage = Outcome.PASSED, None
    if report.skipped:
        outcome = Outcome.SKIPPED
    elif report.failed:
        outcome, stage = Outcome.FAILED, check.stage
        if isinstance(error, CompileError):
            stage = Stage(error.stage.value)
        elif isinstance(error, LibraryMissing):
            outcome = Outcome.INFRA
    own = check.bmodels[0] if check.bmodels else None
    profile = own.result.profile if own else None
    return Record(
        case=case.id if case else "",
        suite=item.path.stem.removeprefix("test_"),
        check=name if report.when == "call" else f"{name} ({report.when})",
        outcome=outcome,
        stage=stage,
        message="" if error is None else f"{type(error).__name__}: {error}",
        seconds=call.duration,
        metrics=dict(check.metrics),
        predicted={}
        if profile is None
        else {
            "predicted_ms": profile.predicted_ms,
            "predicted_cycles": profile.predicted_cycles,
            "tiu_instructions": profile.tiu_instructions,
            "gdma_instructions": profile.gdma_instructions,
            "ddr_read_bytes": profile.ddr_read_bytes,
            "ddr_write_bytes": profile.ddr_write_bytes,
        },
        bmodel_sha256=own.result.bmodel_sha256 if own else "",
        runtime=check.runtime,
    )
