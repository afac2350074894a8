"""Watches over a board during a run: lock, canary, quarantine. A sick board is no verdict on the compiler."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from compile.compiler import CompileError
from harness.device import quarantine
from harness.device.canary import Canary, ask, judge
from harness.device.lock import BoardLock
from reports.schema import Outcome, Record, Stage
from runtime.faults import DeviceError, RuntimeFault, WorkerDied, WorkerHung

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.device.place import Place


DOUBTFUL = (WorkerDied, WorkerHung, DeviceError)
"""Failures after which the board may be the one to blame."""


class InfraError(RuntimeError):
    """The board or the host is sick, so that nothing was judged."""


class Guard:
    """Knows whether the board of a run can be trusted.

    Attributes:
        sick: why it cannot; None as long as it can.
    """

    def __init__(self, place: Place, make_canary: Callable[[], Canary]) -> None:
        """*make_canary* is called once, when the canary is first needed."""
        self._place = place
        self._make_canary = make_canary
        self._canary: Canary | None = None
        self._lock = BoardLock(place.name)
        self.sick: str | None = None

    def claim(self) -> None:
        """Lock the board, and see whether an earlier run has put it into quarantine.

        Raises:
            BoardBusyError: somebody else uses it.
        """
        self._lock.acquire()
        found = quarantine.look(self._place.state_folder)
        if found is not None:
            self.sick = self._advice(found)

    def release(self) -> None:
        """Unlock the board; twice does nothing."""
        self._lock.release()

    def check(self, when: str) -> Record:
        """Run the canary, and put the board into quarantine where that goes wrong.

        Args:
            when: part of the record's name, such as ``before the first case``.

        Returns:
            The record of it.
        """
        start = time.monotonic()
        metrics: dict[str, float | None] = {}
        runtime: dict[str, str] = {}
        problems: list[str] = []
        stage = Stage.EXPORT
        try:
            self._canary = self._canary or self._make_canary()
            stage = Stage.LOAD
            with self._place.open([self._canary.bmodel.path]) as engine:
                stage = Stage.RUN
                runtime = {"kind": engine.versions.kind.value, "driver": str(engine.versions.driver)}
                answer = ask(self._canary, engine)
            stage = Stage.NUMERICS
            metrics |= answer.distances
            if not self._place.simulated:
                metrics["canary_step_ms"] = answer.step_ms
            problems = judge(answer, self._place.state_folder, timed=not self._place.simulated)
        except CompileError as error:
            # The board is not to blame: no quarantine, but no trust either.
            self.sick = f"the canary does not compile on this host, though it is known to: {error}"
        except self._place.blameless as error:
            self.sick = f"the canary cannot be run: {type(error).__name__}: {error}"
        except RuntimeFault as error:
            problems = [f"the canary does not run: {type(error).__name__}: {error}"]
        if problems:
            self.sick = self._advice(quarantine.put(self._place.state_folder, f"{when}: {'; '.join(problems)}"))
        return Record(
            case="",
            suite="device",
            check=f"canary {when}",
            outcome=Outcome.INFRA if self.sick else Outcome.PASSED,
            stage=stage if self.sick else None,
            message=self.sick or "",
            seconds=time.monotonic() - start,
            metrics=metrics,
            runtime=runtime,
            bmodel_sha256=self._canary.bmodel.result.bmodel_sha256 if self._canary else "",
            target=self._place.label,
        )

    def _advice(self, found: quarantine.Quarantine) -> str:
        """Why the board is not used, and what its owner can do about it."""
        first, *rest = found.reason.splitlines()
        return (
            f"{self._place.label} has been in quarantine since {found.since}: {first}\n"
            + (f"  the rest of it:     {quarantine.file_of(self._place.state_folder)}\n" if rest else "")
            + f"  to recover it:      {self._place.recovery}\n"
            + f"  to use it again:    {self._place.lift}"
        )
