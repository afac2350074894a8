"""Compiles the rows of :mod:`harness.compile_rows` one after the other and judges what the compiler predicts of them.

A prediction is exact from run to run of one release, so a row is compared with its recorded best to the cycle; what a
graph loses by more than 1 % is a verdict, a missed target is not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from compile.compiler import STAGE_TIMEOUT_S, CompileError, compile_graph
from compile.graphs.block import Rwkv7Block
from compile.spec import GraphKind
from compile.storage import read_storage
from harness.checkpoints import Model
from harness.jobs import job_of
from harness.paths import cache_folder
from harness.rates import floor_of
from harness.sizes import BY_BLOCK, SIZES
from reference.synthetic import synthetic, synthetic_block
from tokenizer.codec import codec_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from compile.compiler import Job
    from compile.profile import Profile
    from compile.storage import Storage
    from compile.toolchain import Toolchain
    from harness.compile_rows import Row

WORSE_BY = 0.01
"""The share of its best by which a row may be slower; one that is slower still fails."""


class Verdict(Enum):
    """How a row stands to its recorded best."""

    FAILED = "does not compile"
    WORSE = "worse"  # by more than WORSE_BY
    WITHIN = "within 1 %"  # worse by less, or equal
    BETTER = "better"
    NEW = "no best yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a row.

    Attributes:
        row: with the best that it is compared with.
        release: of the compiler.
        error: why the row does not compile; empty where it does, and then the fields after it are there.
        floor_ns: None for a release that was never swept.
        loop_cycles: predicted of the loop variant; None where that was not compiled.
    """

    row: Row
    release: str
    error: str = ""
    profile: Profile | None = None
    bmodel_bytes: int = 0
    storage: Storage | None = None
    floor_ns: float | None = None
    loop_cycles: int | None = None

    @property
    def cycles(self) -> int | None:
        """Predicted cycles of a call, one a nanosecond."""
        return None if self.profile is None else self.profile.predicted_cycles

    @property
    def met(self) -> bool:
        """Whether it compiles and reaches its target."""
        return self.cycles is not None and self.cycles <= self.row.target_ms * 1e6

    @property
    def times_faster(self) -> float | None:
        """The time of the loop over this one; the recorded time of an earlier loop counts where none was compiled."""
        recorded = None if self.row.loop_ms is None else self.row.loop_ms * 1e6
        loop = recorded if self.loop_cycles is None else self.loop_cycles
        return None if self.cycles is None or loop is None else loop / self.cycles

    @property
    def share(self) -> float | None:
        """Of the floor's speed: 1 is the floor itself."""
        return None if self.cycles is None or self.floor_ns is None else self.floor_ns / self.cycles

    @property
    def best(self) -> int | None:
        """Cycles of the best that is recorded for this release."""
        return self.row.best.get(self.release)

    @property
    def change(self) -> float | None:
        """Relative to the best: 0.01 is 1 % slower."""
        return None if self.cycles is None or self.best is None else self.cycles / self.best - 1

    @property
    def verdict(self) -> Verdict:
        """How it stands to the best."""
        return Verdict.FAILED if self.cycles is None else judge(self.cycles, self.best)


def judge(cycles: int, best: int | None) -> Verdict:
    """How a prediction stands to the recorded best."""
    if best is None:
        return Verdict.NEW
    if cycles < best:
        return Verdict.BETTER
    return Verdict.WORSE if 100 * (cycles - best) > best else Verdict.WITHIN  # in whole numbers: exact at the border


def passed(results: Sequence[Result]) -> bool:
    """Whether every row compiles and none is worse than the rule allows."""
    return not any(one.verdict in {Verdict.FAILED, Verdict.WORSE} for one in results)


def bench_compile(
    rows: Sequence[Row],
    toolchain: Toolchain,
    *,
    loop: bool = False,
    say: Callable[[str], None] = lambda _: None,
    timeout_s: float = STAGE_TIMEOUT_S,
) -> Iterator[Result]:
    """Compile row after row, or find them compiled; one that does not compile is a result too.

    Args:
        rows: what to compile.
        toolchain: the compiler.
        loop: compile the loop variant of the rows where that takes minutes, see :func:`loop_row`, beside them.
        say: receives one line of progress at a time.
        timeout_s: limit for each stage of a compile, in seconds.

    Raises:
        StorageError, ProfileError: the compiler left a file in another format.
    """
    models: dict[tuple[str, int | None], Model] = {}
    for number, row in enumerate(rows, 1):
        say(f"[{number}/{len(rows)}] {row.id}")
        place = row.size, row.block
        if place not in models:
            models = {place: _model(row)}  # the one before is let go: a size takes a gigabyte
        model = models[place]
        result = _compiled(row, model, toolchain, say, timeout_s)
        if result.error:
            say(f"[{number}/{len(rows)}] {row.id}: {result.verdict.value}\n{result.error}")
        else:
            aim = f"{row.target_ms:.2f} {'met' if result.met else 'missed'}"
            say(f"[{number}/{len(rows)}] {row.id}: {(result.cycles or 0) / 1e6:.4f} ms predicted, target {aim}")
        other = loop_row(row) if loop else None
        if other is not None:
            beside = _compiled(other, model, toolchain, say, timeout_s)
            say(f"{other.id}: {beside.error or f'{(beside.cycles or 0) / 1e6:.4f} ms predicted'}")
            result = dataclasses.replace(result, loop_cycles=beside.cycles)
        yield result


def loop_row(row: Row) -> Row | None:
    """The loop variant of a row; None where it would take too long to compile: all but decode graphs of whole models.

    A loop of 32 tokens took a quarter of an hour.
    """
    if row.block is not None or row.point.graph.kind is not GraphKind.DECODE:
        return None
    return msgspec.structs.replace(row, case=dataclasses.replace(row.point, variant="loop").id, best={})


def _compiled(row: Row, model: Model, toolchain: Toolchain, say: Callable[[str], None], timeout_s: float) -> Result:
    job = _job(row, model, toolchain)
    try:
        bmodel = compile_graph(job, cache_folder(), say=say, timeout_s=timeout_s)
    except CompileError as error:
        return Result(row=row, release=toolchain.version, error=str(error))
    shapes = {name: array.shape for name, array in model.arrays.items()}
    floor = floor_of(row.point, shapes, toolchain.version)
    return Result(
        row=row,
        release=toolchain.version,
        profile=bmodel.result.profile,
        bmodel_bytes=bmodel.result.bmodel_bytes,
        storage=read_storage(bmodel.folder),
        floor_ns=None if floor is None else floor.ns,
    )


def _job(row: Row, model: Model, toolchain: Toolchain) -> Job:
    job = job_of(row.point, model, toolchain)
    return job if row.block is None else dataclasses.replace(job, variant=Rwkv7Block)


def _model(row: Row) -> Model:
    shape = (SIZES | BY_BLOCK)[row.size]
    made = synthetic(shape) if row.block is None else synthetic_block(shape, row.block)
    return Model(made, codec_for(shape.n_vocab))
