"""Wrong bmodels on the simulator: compiled by the real toolchain, and around their engine whatever else is wrong."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from compile.compiler import compile_graph
from harness.device.place import CMODEL, open_place
from harness.paths import cache_folder
from reports.schema import Stage
from runtime.faults import RuntimeFault
from runtime.framing import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from compile.compiler import Job
    from compile.toolchain import Toolchain
    from harness.cases import Case
    from harness.check import Check
    from runtime.engine import Engine


class Wrapped:
    """An engine that does what another one does; a faulty one overrides :meth:`request`."""

    remarks = ()

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.nets = engine.nets
        self._net = {net.name: net for net in engine.nets}

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._engine.alive

    def request(self, doing: str, payloads: Sequence[bytes] = (), **fields: Any) -> Message:
        """Pass a request on."""
        reply = self._engine.request(doing, payloads, **fields)
        return Message(reply.fields, [bytes(payload) for payload in reply.payloads])  # they lie in a window

    def ask(self, do: str, session: int, payloads: Sequence[bytes] = ()) -> Message:
        """A request of the fault's own, which no fault changes."""
        return Wrapped.request(self, "as a fault does", payloads, do=do, session=session)


class LastSession(Wrapped):
    """Every launch works on the state of the session that was started last."""

    def request(self, doing: str, payloads: Sequence[bytes] = (), **fields: Any) -> Message:
        """Remember who was started, and run that one."""
        if fields["do"] == "run":
            fields["session"] = self.last
        reply = super().request(doing, payloads, **fields)
        if fields["do"] == "start":
            self.last = reply.fields["session"]
        return reply


class Unwritten(Wrapped):
    """After prefill, the state is put back to what it was."""

    def request(self, doing: str, payloads: Sequence[bytes] = (), **fields: Any) -> Message:
        """Keep the state over a launch of several tokens."""
        if fields["do"] != "run" or self._net[fields["net"]].tokens == 1:
            return super().request(doing, payloads, **fields)
        before = self.ask("read", fields["session"]).payloads
        reply = super().request(doing, payloads, **fields)
        self.ask("write", fields["session"], before)
        return reply


class ResetKeeps(Wrapped):
    """A session that is reset keeps its WKV state."""

    def request(self, doing: str, payloads: Sequence[bytes] = (), **fields: Any) -> Message:
        """Put the WKV matrices back behind a reset."""
        if fields["do"] != "clear":
            return super().request(doing, payloads, **fields)
        before = self.ask("read", fields["session"]).payloads
        reply = super().request(doing, payloads, **fields)
        after = self.ask("read", fields["session"]).payloads
        self.ask("write", fields["session"], [before[i] if i % 3 == 1 else data for i, data in enumerate(after)])
        return reply


class WrittenTransposed(Wrapped):
    """A state that is set has its WKV matrices with keys as rows."""

    def request(self, doing: str, payloads: Sequence[bytes] = (), **fields: Any) -> Message:
        """Transpose on the way to the device."""
        if fields["do"] == "write":
            payloads = [self._transposed(i, data) if i % 3 == 1 else data for i, data in enumerate(payloads)]
        return super().request(doing, payloads, **fields)

    def _transposed(self, i: int, data: bytes) -> bytes:
        return np.frombuffer(data, np.float32).reshape(self.nets[0].states[i].shape).swapaxes(1, 2).tobytes()


class FromZero(Wrapped):
    """The first launch of a session starts from zeros, whatever state was set."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._fresh: set[int] = set()

    def request(self, doing: str, payloads: Sequence[bytes] = (), **fields: Any) -> Message:
        """Clear before a session's first launch."""
        if fields["do"] == "run" and fields["session"] in self._fresh:
            self._fresh.discard(fields["session"])
            self.ask("clear", fields["session"])
        reply = super().request(doing, payloads, **fields)
        if fields["do"] == "start":
            self._fresh.add(reply.fields["session"])
        return reply


class Stale(Wrapped):
    """Logits are read before the launch has written them: those of the launch before, zeros at first."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._old: dict[str, list[bytes]] = {}

    def request(self, doing: str, payloads: Sequence[bytes] = (), **fields: Any) -> Message:
        """Answer with the launch before."""
        reply = super().request(doing, payloads, **fields)
        if fields["do"] != "run":
            return reply
        old = self._old.get(fields["net"], [bytes(len(data)) for data in reply.payloads])
        self._old[fields["net"]] = list(reply.payloads)
        return Message(reply.fields, old)


class BmodelDevice:
    """Compiles what it is asked for and opens the simulator with it, one engine at a time.

    Attributes:
        compiled: how many graphs were not in the cache.
    """

    def __init__(
        self,
        toolchain: Toolchain,
        job: Callable[[Case], Job],
        wrap: Callable[[Engine], Any] = Wrapped,
        file: Callable[[Path], Path] = lambda path: path,
    ) -> None:
        """*job* says how a case is compiled, *file* makes what is loaded of what came out."""
        self._place = open_place(CMODEL, None, toolchain.libraries)
        self._job, self._wrap, self._file = job, wrap, file
        self._engine: Engine | None = None
        self.compiled = 0

    def __enter__(self) -> Self:
        """Return the device."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""
        self._close()
        self._place.close()

    def engine(self, check: Check, *cases: Case) -> Any:
        """An engine with the nets of *cases*.

        Raises:
            CompileError, RuntimeFault: it does not compile or load.
        """
        self._close()
        check.stage = Stage.EXPORT
        bmodels = [compile_graph(self._job(case), cache_folder()) for case in cases]
        self.compiled += sum(not bmodel.cached for bmodel in bmodels)
        check.stage = Stage.LOAD
        self._engine = self._place.open([self._file(bmodel.path) for bmodel in bmodels])
        check.stage = Stage.RUN
        return self._wrap(self._engine)

    def _close(self) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine, None
            with suppress(RuntimeFault):
                engine.close()
