"""The pytest plugin of ``pytest suites/``: options into a run, cases to tests, a record of every check."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from compile.toolchain import ToolchainError
from harness.cases import GridError, Narrowed, case_of, one_length
from harness.check import CHECK, Check
from harness.device.board import NoBoardError
from harness.device.guard import DOUBTFUL, InfraError
from harness.device.health import remarks
from harness.device.lock import BoardBusyError
from harness.device.remote.faults import ConnectionLost, RemoteFault
from harness.gate.finding import Key
from harness.known import cases_that_ship, load_known
from harness.manifest import manifest, now
from harness.ops.case import shipped_ops
from harness.own.options import Own
from harness.paths import cache_folder
from harness.plugin import chosen_options
from harness.record_of import key_of_item, record_of
from harness.records import FolderBusyError, FolderLock, RunWriter, drop_cut_line
from harness.resume import ResumeError, has_failed, take_up
from harness.run import RUN, SuiteRun
from harness.summary import summary
from reference.shape import CheckpointError
from reports.csv_file import write_csv
from reports.html_page import write_html
from reports.lenient import load
from reports.schema import Outcome, Record, read
from runtime.faults import BadBmodel
from tokenizer.codec import CodecError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from harness.cases import Case
    from harness.known import Entry
    from harness.ops.case import OpCase
    from harness.resume import Earlier
    from reports.schema import Run


CANNOT_WRITE = int(pytest.ExitCode.INTERNAL_ERROR)
"""Exit status where records or reports cannot be written, as on a full disk."""

_SUITES = Path(__file__).parent.parent / "suites"


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
                libsophon=option("--libsophon"),
                checkpoint=option("--checkpoint"),
                codec=option("--codec"),
                grid=option("--grid"),
                narrowed=Narrowed(
                    quantizations=option("--quantizations"),
                    chunk_lengths=option("--chunk-lengths"),
                    variant=option("--variant"),
                    options=option("--options"),
                ),
                toolchain=option("--toolchain"),
                stage_timeout_s=option("--stage-timeout"),
                say=self._say,
                own=Own(option("--bmodel") or (), option("--io"), option("--onnx") or ()),
            )
            self._known = load_known(
                option("--known"),
                version=self.run.toolchain.version,
                checkpoint=self.run.model.checkpoint.name,
                target=self.run.place.label,
            )
            self._earlier = self._take_up(option("--resume"))
            if self.run.guard is not None and not config.option.collectonly:
                self.run.guard.claim()
        except (
            NoBoardError,
            BoardBusyError,
            GridError,
            ToolchainError,
            CheckpointError,
            CodecError,
            RemoteFault,
            FolderBusyError,
            BadBmodel,
            ValueError,
        ) as error:
            raise pytest.UsageError(str(error)) from error
        config.stash[RUN] = self.run
        self._runs = config.invocation_params.dir / option("--runs")
        self._writer: RunWriter | None = None
        self._recorded: set[str] = set()
        self._board_is_used = False
        self._checks: set[Key] = set()  # all that the suites have for the grids: the run's and those that ship
        self._suites: set[Path] = set()  # whose checks these are
        self._unmatched: tuple[Entry, ...] = ()
        self._asked = 0  # checks, those that an earlier part of the run has made included

    def _take_up(self, path: Path | None) -> Earlier | None:
        """The run to go on with, if there is one; nobody else may write it meanwhile."""
        if path is None:
            return None
        self._lock = FolderLock(path if path.is_dir() else path.parent)
        return take_up(path)

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
        path, name = metafunc.definition.path, metafunc.function.__name__.removeprefix("test_")
        suite = path.stem.removeprefix("test_")
        self._suites.add(path)
        if "op" in metafunc.fixturenames:
            self._checks |= {Key(op.id, suite, name) for op in (*self.run.ops, *shipped_ops())}
            why = "the suite ops is of our own graphs' operations: it says nothing of somebody else's port"
            ops = _or_a_word(self.run.ops, why if self.run.port else f"grid {self.run.grid.name} has no operations")
            metafunc.parametrize("op", ops, ids=lambda op: op.id, scope="session")
            return
        if "case" not in metafunc.fixturenames:
            self._checks.add(Key("", suite, name))
            return
        marker = metafunc.definition.get_closest_marker("graphs")
        if marker is None:
            raise pytest.UsageError(f"{metafunc.definition.nodeid} takes a case, but is not marked with graphs(...)")
        cases = [case for case in self.run.grid.cases if case.graph.kind in marker.args]
        if "only" in marker.kwargs:
            cases = one_length(cases, marker.kwargs["only"])
        if self._known.entries:
            every = (*cases, *(case for case in cases_that_ship() if case.graph.kind in marker.args))
            self._checks |= {Key(case.id, suite, name) for case in every}
        # Session scope groups the tests by case: each is loaded once, and what is said of it stands together.
        why = f"grid {self.run.grid.name} has no graph {' or '.join(kind.value for kind in marker.args)}"
        metafunc.parametrize("case", _or_a_word(cases, why), ids=lambda case: case.id, scope="session")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what a run that is gone on with has judged already."""
        self._leave_out(config, items)
        self._asked = len(items)
        if self._earlier is None:
            return
        keys = [key_of_item(item) for item in items]
        try:
            self._earlier.refuse_strangers(keys)
        except ResumeError as error:
            raise pytest.UsageError(str(error)) from error
        done = [item for item, key in zip(items, keys, strict=True) if key in self._earlier.done]
        items[:] = [item for item, key in zip(items, keys, strict=True) if key not in self._earlier.done]
        config.hook.pytest_deselected(items=done)

    def _leave_out(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what this grid or this target does not have."""
        for item in [*items]:
            _, suite, name = key_of_item(item)
            extra = item.get_closest_marker("extra") and f"{suite}/{name}" not in self.run.grid.also
            elsewhere = item.get_closest_marker("boards") and self.run.place.simulated
            if extra or elsewhere:
                items.remove(item)
                config.hook.pytest_deselected(items=[item])

    def pytest_report_header(self) -> list[str]:
        """The versions of everything that matters."""
        run, checkpoint = self.run, self.run.model.checkpoint
        shape = checkpoint.shape
        return [
            f"harness: {version('rwkv-tpu-harness')}, torch {version('torch')}, onnx {version('onnx')}",
            f"target: {run.place.description}",
            f"toolchain: TPU-MLIR {run.toolchain.compiler_commit}, wheel {run.toolchain.wheel_sha256[:12]}",
            (
                f"checkpoint: {checkpoint.name}, sha256 {checkpoint.sha256[:12]}, {shape.n_layer} layers, "
                f"width {shape.n_embd}, {shape.n_head} heads of {shape.head_size}, vocabulary {shape.n_vocab}, "
                f"codec {run.model.codec.value}"
            ),
            *([f"port: {', '.join(map(str, run.port.files))}, map {run.port.io.path}"] if run.port else []),
            f"grid: {run.grid.name}: {', '.join(case.id for case in run.grid.cases)}",
            *([f"known failures: {self._known.path}"] if self._known.path else []),
        ]

    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Open the records file once something will run, and see whether the board is well."""
        if (session.testscollected or self._earlier) and not session.config.option.collectonly:
            run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{self.run.place.name}"
            readings = self.run.place.readings()
            for remark in remarks(readings):
                self._say(f"board: {remark}")
            header = manifest(
                run_id=run_id,
                target=self.run.place.label,
                toolchain=self.run.toolchain,
                model=self.run.model,
                grid=self.run.grid,
                port=self.run.port.identity if self.run.port else {},
                limits_sha256=self.run.limits_sha256,
                known_sha256=self._known.sha256,
                options=chosen_options(self._config.getoption),
                health=readings,
                checks=self._asked,
            )
            self._writer = self._begin(header) if self._earlier is None else self._go_on(self._earlier, header)
            self.run.folder = self._writer.folder
            self._board_is_used = any(case_of(item) for item in session.items)
            self._ask_canary("before the first case" if self._earlier is None else "before going on")

    def _begin(self, header: Run) -> RunWriter:
        return RunWriter(self._runs / header.id, header)

    def _go_on(self, earlier: Earlier, header: Run) -> RunWriter:
        """Open the records of an earlier run, which *header* would begin anew.

        Raises:
            pytest.UsageError: it is another run.
        """
        try:
            earlier.refuse_another(header)
        except ResumeError as error:
            raise pytest.UsageError(str(error)) from error
        left = self._asked - len(earlier.done)
        self._say(f"goes on with {earlier.folder}: {len(earlier.done)} checks are finished, {left} are left")
        if earlier.cut_line is not None:
            self._say(f"line {earlier.cut_line} of its records was not written to its end, and is dropped")
        if earlier.dropped:
            self._say(f"{earlier.dropped} records without a verdict, or in doubt since the canary failed, are dropped")
        if drop_cut_line(earlier.folder / "samples.jsonl"):
            self._say("the last line of its samples was not written to its end, and is dropped")
        again = msgspec.structs.replace(earlier.run, resumed=(*earlier.run.resumed, now()))
        return RunWriter(earlier.folder, again, kept=earlier.kept, lock=self._lock)

    def _add(self, record: Record) -> None:
        """Write a record down, or end the run: what cannot be recorded need not be judged."""
        if self._writer is not None:
            try:
                self._writer.add(record)
            except OSError as error:
                pytest.exit(f"{self._writer.path}: {error.strerror}. {self._how_to_go_on()}", returncode=CANNOT_WRITE)

    def _how_to_go_on(self) -> str:
        folder = self._writer.folder if self._writer else None
        return f"What was recorded before is kept; to go on from there: pytest suites/ --resume {folder}"

    def _ask_canary(self, when: str) -> None:
        """Record whether the board gives the known answer; not of one that is known to be sick, or that nobody uses."""
        guard = self.run.guard
        if self._writer is None or guard is None or guard.sick or not self._board_is_used:
            return
        self.run.close()  # one engine at a time
        self._say(f"canary {when} …")
        record = guard.check(when)
        self._add(record)
        if guard.sick:
            self._say(f"INFRA: {guard.sick}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Keep every case from a board that is sick."""
        guard = self.run.guard
        if guard is not None and guard.sick and case_of(item) is not None:
            raise InfraError(f"INFRA: {guard.sick}")

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        """Judge a case once more whose connection to the board was cut: that says nothing about it."""
        try:
            return (yield)
        except ConnectionLost as error:
            self._say(f"{pyfuncitem.name}: {str(error).splitlines()[0]}; once more, over a new connection")
            check = pyfuncitem.stash.get(CHECK, Check())
            check.metrics.clear()
            check.kl_by_position.clear()
            check.notes.clear()
            names = pyfuncitem._fixtureinfo.argnames  # noqa: SLF001 - as pytest's own implementation of this hook
            pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
            return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Write a record for each test: of its call, or of a setup or teardown that did not pass."""
        report = yield
        if self._writer is not None and (report.when == "call" or not report.passed):
            record = record_of(item, call, report, self.run.place.label)
            error = call.excinfo.value if call.excinfo is not None else None
            if isinstance(error, InfraError):
                report.longrepr = record.message  # nothing in a traceback tells more
            elif isinstance(error, DOUBTFUL):
                record = self._in_doubt(item, report, record)
            record = self._known.judged(record)
            if record.expected is not None:
                _report_expected(record, report)
            self._add(record)
            self._recorded.add(item.nodeid)
        return report

    def _in_doubt(self, item: pytest.Item, report: pytest.TestReport, record: Record) -> Record:
        """A case died or hung. Where the canary fails after it, nobody can tell whose fault it was: no verdict."""
        self._ask_canary(f"after {item.name}")
        guard = self.run.guard
        if guard is None or not guard.sick:
            return record
        message = (
            f"INFRA: after this case the canary fails too, so that it is no verdict. Once the board is well, run this "
            f"case alone: if the board falls sick again, the case does it.\n{record.message}\n{guard.sick}"
        )
        report.longrepr = message
        return msgspec.structs.replace(record, outcome=Outcome.INFRA, message=message)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write what people read; the records get their last line only where every test has left one."""
        if self._writer is not None:
            if self._earlier is not None:
                session.exitstatus = exitstatus = self._with_what_was(self._earlier, exitstatus)
            if exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
                self._ask_canary("after the last case")
            if self.run.guard is not None and self.run.guard.sick:
                # A canary is no test: without this, a board that died at the very end would pass.
                session.exitstatus = exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED
            if self._suites.issuperset(_SUITES.glob("test_*.py")):  # of some of them alone, an entry may match others
                self._unmatched = self._known.unmatched(self._checks)
            if self._unmatched:
                session.exitstatus = exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED
            nothing_new = self._earlier is not None and self._earlier.whole and not self._recorded
            folder = self._writer.folder
            try:
                if len(self._recorded) == session.testscollected and not nothing_new:
                    unmatched = tuple(entry.title for entry in self._unmatched)
                    self._writer.end(int(exitstatus), self.run.place.readings(), unmatched)
                loaded = load([self._writer.path])
                write_csv(loaded, folder / "records.csv")
                write_html(loaded, folder / "index.html", cache_folder() / "pages")
            except OSError as error:
                self._say(f"{folder}: {error.strerror}; with room there, --resume writes what is missing")
                session.exitstatus = exitstatus or CANNOT_WRITE
            self._writer.close()

    @staticmethod
    def _with_what_was(earlier: Earlier, exitstatus: int) -> int:
        """The exit status of a run whose first part was made before."""
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            exitstatus = pytest.ExitCode.OK  # all was judged already
        failed = any(has_failed(record) for record in earlier.kept)
        return pytest.ExitCode.TESTS_FAILED if failed and exitstatus == pytest.ExitCode.OK else exitstatus

    def _about_known(self, records: tuple[Record, ...]) -> Iterator[tuple[str, dict[str, bool]]]:
        """What became of expected failures: lines, and how they look."""
        as_expected = sum(record.outcome is Outcome.EXPECTED_FAILURE for record in records)
        if as_expected:
            yield f"failed as expected: {as_expected}, see {self._known.path}", {}
        for entry in self._known.due(datetime.now(UTC).date()):
            yield f"look again, due since {entry.look_again}: {entry.title}: {entry.reason}", {"yellow": True}
        wrong = [
            " ".join(filter(None, (one.case, one.suite, one.check, one.message.partition("\n")[0])))
            for one in records
            if one.expected is not None and one.outcome is not Outcome.EXPECTED_FAILURE
        ]
        wrong += [f"{entry.title} matches nothing any more" for entry in self._unmatched]
        yield from ((f"stale expectation: {line}", {"red": True}) for line in wrong)
        if wrong and self._writer is not None:
            yield f"  rwkv-tpu known update {self._writer.folder}", {}

    def pytest_unconfigure(self) -> None:
        """Let others have the board."""
        self.run.end()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """A table of the cases, and where the rest is."""
        if self._writer is None:
            return
        folder = self._writer.folder
        terminalreporter.section("RWKV-7 on BM1684X")
        records = read(self._writer.path)
        terminalreporter.write(summary(records, terminalreporter._tw.fullwidth))  # noqa: SLF001 - the width has no public name
        for line, markup in self._about_known(records.records):
            terminalreporter.write_line(line, **markup)
        if self.run.guard is not None and self.run.guard.sick:
            terminalreporter.write_line(f"INFRA, no verdict on the compiler: {self.run.guard.sick}", red=True)
        if records.interrupted:
            terminalreporter.write_line(f"interrupted. {self._how_to_go_on()}", yellow=True)
        terminalreporter.write_line(f"CSV:  {folder / 'records.csv'}")
        terminalreporter.write_line(f"HTML: {folder / 'index.html'}")


def _or_a_word(values: Sequence[Case] | Sequence[OpCase], why: str) -> Sequence[object]:
    """The values of a parameter; of none, pytest says itself only that the set is empty."""
    return values or [pytest.param(None, id="none", marks=pytest.mark.skip(reason=why))]


def _report_expected(record: Record, report: pytest.TestReport) -> None:
    """Have pytest tell what the record says of a check that was expected to fail."""
    if record.outcome is Outcome.EXPECTED_FAILURE and record.expected is not None:
        report.outcome = "skipped"  # as pytest's own xfail does
        report.wasxfail = record.expected.reason
        return
    words = record.message.partition("\n")[0]
    if record.outcome is Outcome.PASSED:
        report.outcome = "failed"
        report.longrepr = words
    else:
        report.sections.append(("expected failures", words))
