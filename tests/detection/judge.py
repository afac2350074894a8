"""Puts the suites' own test functions to an engine, and gives what they found."""

from __future__ import annotations

import inspect
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol

import _pytest.outcomes
import torch

from compile.compiler import CompileError
from compile.spec import Quantization
from harness.cases import prefills_of
from harness.check import Check
from harness.limits import load_limits
from harness.oracle import oracle_for
from reference.state import State
from reports.schema import Stage
from runtime.faults import RuntimeFault
from suites import test_parity, test_robustness, test_state, test_task, test_tokenizer

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from harness.cases import Case
    from harness.checkpoints import Model
    from harness.targets.base import Output, StateArrays, Target

SUITES = {
    "tokenizer": test_tokenizer,
    "parity": test_parity,
    "state": test_state,
    "task": test_task,
    "robustness": test_robustness,
}
"""All suites that judge numbers; `throughput` measures times, and has no right ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        check: suite and name, as in a record.
        case: id of the case; empty where the check concerns no graph.
        stage: that the record would name.
        message: of the failure; empty where there was none.
        metrics: the worst found up to there.
    """

    check: str
    case: str
    stage: Stage | None
    message: str
    metrics: dict[str, float]


class Device(Protocol):
    """Opens engines for the suites, in the place of a run."""

    def engine(self, check: Check, *cases: Case) -> Any:
        """An engine with the nets of *cases*."""
        ...


class Rememberer:
    """A target that computes nothing twice: an oracle's answers are needed for every fault anew."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._known: dict[tuple[tuple[int, ...], int], tuple[Output, StateArrays | None]] = {}

    def run(self, tokens: Sequence[int], state: StateArrays | None = None) -> Output:
        """As the target itself. The state is kept with the answer, so that no other takes its address."""
        key = tuple(tokens), id(state)
        if key not in self._known:
            self._known[key] = self._target.run(tokens, state), state
        return self._known[key][0]


class Bench:
    """What the suites are given of a model: oracles, caps, and a random state."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.limits, _ = load_limits()
        self._folder = TemporaryDirectory()
        self._random = State.random(model.checkpoint.shape, seed=0, dtype=torch.float32).arrays()
        self._oracle = cache(lambda quantization: Rememberer(oracle_for(model.checkpoint, quantization)))

    def judge(self, device: Device, cases: Sequence[Case], only: str = "") -> Generator[Finding]:
        """Run the suites on *device*, in the order of a run, and give every check that fails, as soon as it does.

        Args:
            device: opens what is judged.
            cases: the grid's.
            only: name of one check; empty for all.
        """
        return (result for result in self.results(device, cases, only) if result.message)

    def results(self, device: Device, cases: Sequence[Case], only: str = "") -> Generator[Finding]:
        """The same with those that pass, which have no message; what skips is left out."""
        for name, test, kinds in _tests():
            if only and name != only:
                continue
            for case in [case for case in cases if case.graph.kind in kinds] if kinds else [None]:
                check = Check(limits=self.limits[case.quantization] if case else None)
                stage, message = None, ""
                try:
                    test(**self._fixtures(test, case, cases, device, check))
                except (AssertionError, RuntimeFault) as error:
                    stage, message = check.stage, words(error)
                except CompileError as error:
                    stage, message = Stage(error.stage.value), words(error)
                except _pytest.outcomes.Skipped:
                    continue
                case_id = case.id if case else ""
                yield Finding(check=name, case=case_id, stage=stage, message=message, metrics=check.metrics)

    def _fixtures(
        self, test: FunctionType, case: Case | None, cases: Sequence[Case], device: Device, check: Check
    ) -> dict[str, Any]:
        quantization = case.quantization if case else Quantization.F16
        every = {
            "case": case,
            "device": device,
            "model": self.model,
            "check": check,
            "oracle": self._oracle(quantization),
            "full_precision": self._oracle(Quantization.F32),
            "random_state": self._random,
            "prefills": [] if case is None else prefills_of(case, cases),
            "tmp_path": Path(self._folder.name),
        }
        return {name: every[name] for name in inspect.signature(test).parameters}


def words(error: Exception) -> str:
    """The error's message; of a bare assert, which has none outside pytest, its source."""
    return str(error) or str(traceback.extract_tb(error.__traceback__)[-1].line)


def _tests() -> list[tuple[str, FunctionType, tuple[Any, ...]]]:
    """Every test function: suite and name, itself, and the kinds of graph that it is marked for.

    But for those that take long, and those that judge another model than the one that a fault is put into.
    """
    found = []
    for suite, module in SUITES.items():
        for name, test in vars(module).items():
            if name.startswith("test_") and isinstance(test, FunctionType):
                every_mark = getattr(test, "pytestmark", [])
                if any(mark.name == "extra" for mark in every_mark) or "hard" in inspect.signature(test).parameters:
                    continue
                marks = [mark for mark in every_mark if mark.name == "graphs"]
                found.append((f"{suite}/{name.removeprefix('test_')}", test, marks[0].args if marks else ()))
    return found


CHECKS = tuple(name for name, _, _ in _tests())
"""Every check of the suites."""
