"""What pytest says of a test, as a record."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from compile.compiler import CompileError
from compile.disk import DiskFullError
from harness.cases import case_of
from harness.check import CHECK, Check
from harness.device.guard import InfraError
from harness.device.remote.faults import RemoteFault
from harness.gate.finding import Key
from harness.ops.case import op_of
from reports.schema import Outcome, Record, Stage
from runtime.faults import LibraryMissing

if TYPE_CHECKING:
    import pytest

    from compile.compiler import Compiled

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


def key_of_item(item: pytest.Item) -> Key:
    """The check that a test makes."""
    case = case_of(item) or op_of(item)
    return Key(case.id if case else "", item.path.stem.removeprefix("test_"), _name(item))


def record_of(item: pytest.Item, call: pytest.CallInfo[Any], report: pytest.TestReport, target: str) -> Record:
    """The record of a part of a test that has ended: its call, setup or teardown."""
    check = item.stash.get(CHECK, Check())
    key = key_of_item(item)
    error = call.excinfo.value if call.excinfo is not None else None
    outcome, stage = Outcome.PASSED, None
    if report.skipped:
        outcome = Outcome.SKIPPED
    elif report.failed:
        outcome, stage = Outcome.FAILED, check.stage
        if isinstance(error, CompileError):
            stage = Stage(error.stage.value)
        elif isinstance(error, LibraryMissing | InfraError | RemoteFault | DiskFullError) or _is_of_the_disk(error):
            outcome = Outcome.INFRA
    own = check.bmodels[0] if check.bmodels else None
    profile = own.result.profile if own else None
    return Record(
        case=key.case,
        suite=key.suite,
        check=key.check if report.when == "call" else f"{key.check} ({report.when})",
        outcome=outcome,
        stage=stage,
        message="\n".join(filter(None, [_in_words(error), *check.notes])),
        seconds=call.duration,
        metrics=dict(check.metrics),
        # Four digits are enough for a curve, and keep the records small.
        kl_by_position={position: float(f"{kl:.4g}") for position, kl in check.kl_by_position.items()},
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
        compiled=_compiled(own.result) if own else {},
        bmodel_sha256=check.bmodel_sha256 or (own.result.bmodel_sha256 if own else ""),
        runtime=check.runtime,
        target=target,
    )


def _compiled(result: Compiled) -> dict[str, int | float]:
    """What was told when the bmodel was really compiled, be it in this run or long before."""
    return {
        "compile_seconds": sum(cost.seconds for cost in result.costs.values()),
        "compile_peak_bytes": max(cost.peak_bytes for cost in result.costs.values()),
        "bmodel_bytes": result.bmodel_bytes,
        "wider_matrices": len(result.wider),
    }


def _in_words(error: BaseException | None) -> str:
    if isinstance(error, InfraError):
        return str(error)
    return "" if error is None else f"{type(error).__name__}: {error}"


def _name(item: pytest.Item) -> str:
    name: str = getattr(item, "originalname", item.name)
    return name.removeprefix("test_")


def _is_of_the_disk(error: BaseException | None) -> bool:
    """A disk that is full or broken says nothing of what was to be judged."""
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK
