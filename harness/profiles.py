"""Predicted timelines of cases: compiled or found in the cache, read, with the floor beside, ready to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compile.compiler import STAGE_TIMEOUT_S, compile_graph
from compile.timeline import DDR_BYTES_PER_NS, FINAL_MLIR, PROFILE, Direction, Engine, GroupBy, costs, read_timeline
from harness.jobs import job_of
from harness.paths import cache_folder
from harness.rates import floor_of
from reports.timeline_page import Bar, Row, TimelineView

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from compile.floor import Floor
    from compile.timeline import Instruction, Timeline
    from compile.toolchain import Toolchain
    from harness.cases import Case
    from harness.checkpoints import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseProfile:
    """A timeline and where it comes from.

    Attributes:
        floor: None for a file of an unknown model, and for a release that was never swept.
    """

    title: str
    timeline: Timeline
    floor: Floor | None


def profile_case(
    case: Case, model: Model, toolchain: Toolchain, *, say: Callable[[str], None], timeout_s: float = STAGE_TIMEOUT_S
) -> CaseProfile:
    """Compile a case, or find it compiled, and read its timeline; *timeout_s* is a limit for each stage.

    Raises:
        CompileError: a stage of the compile failed.
        ProfileError: the profile is in another format.
    """
    bmodel = compile_graph(job_of(case, model, toolchain), cache_folder(), say=say, timeout_s=timeout_s)
    shapes = {name: array.shape for name, array in model.arrays.items()}
    return CaseProfile(
        title=f"{case.id} of {model.checkpoint.name}, TPU-MLIR {toolchain.version}",
        timeline=read_timeline(bmodel.folder / PROFILE),
        floor=floor_of(case, shapes, toolchain.version),
    )


def profile_file(path: Path) -> CaseProfile:
    """Read a profile that some compile left, with names where the final MLIR lies beside it.

    Raises:
        ProfileError: it is missing or not a profile.
    """
    beside = sorted(path.parent.glob(FINAL_MLIR))
    graph = beside[0].name.removesuffix(FINAL_MLIR[1:]) if len(beside) == 1 else path.name
    return CaseProfile(title=f"{graph} in {path.absolute().parent.name}", timeline=read_timeline(path), floor=None)


def facts(profile: CaseProfile) -> tuple[tuple[str, str], ...]:
    """The figures of a profile in words; every time is a prediction."""
    timeline, busy = profile.timeline, profile.timeline.busy
    total = timeline.total_cycles

    def share(cycles: int) -> str:
        return f"{cycles:,} cycles, {cycles / max(1, total):.1%}"

    found = [
        ("predicted time of a call", f"{total / 1e6:.4f} ms"),
        ("TIU (computes) busy", share(busy.tiu)),
        ("GDMA (moves) busy", share(busy.gdma)),
        ("both at once", share(busy.both)),
        ("neither", share(busy.neither)),
        ("instructions", f"{len(timeline.of(Engine.TIU)):,} TIU, {len(timeline.of(Engine.GDMA)):,} GDMA"),
    ]
    words = {Direction.READ: "read from DDR", Direction.WRITE: "written to DDR", Direction.COPY: "copied inside DDR"}
    for direction, word in words.items():
        moved = sum(one.bytes for one in timeline.instructions if one.direction is direction)
        found.append((word, f"{moved:,} bytes"))
    rate = timeline.ddr_bytes_per_ns
    found.append(("DDR bandwidth, mean", f"{rate:.2f} GB/s, {rate / DDR_BYTES_PER_NS:.1%} of 64 GiB/s"))
    if profile.floor is not None:
        found += _floor_facts(profile.floor, total)
    return tuple(found)


def view(profile: CaseProfile) -> TimelineView:
    """As the HTML page takes it."""
    return TimelineView(
        title=profile.title,
        facts=facts(profile),
        total_cycles=profile.timeline.total_cycles,
        floor_ns=None if profile.floor is None else profile.floor.ns,
        lanes=tuple(engine.value for engine in Engine),
        bars=tuple(map(_bar, profile.timeline.instructions)),
        by_name=_rows(profile.timeline, GroupBy.NAME),
        by_kind=_rows(profile.timeline, GroupBy.KIND),
    )


def _floor_facts(floor: Floor, total: int) -> list[tuple[str, str]]:
    least = floor.minimum
    reason = f"{least.total_bytes:,} bytes at {floor.bytes_per_ns:.2f} GB/s"
    if not floor.by_memory:
        reason = f"{least.operations:,} operations at {floor.operations_per_ns / 1e3:.0f} TFLOPS"
    return [
        ("least bytes: weights", f"{least.weight_bytes:,} bytes"),
        ("least bytes: embedding, state, ids and logits", f"{least.total_bytes - least.weight_bytes:,} bytes"),
        ("floor", f"{floor.ns / 1e6:.4f} ms: {reason}"),
        ("share of the floor's speed reached", f"{floor.share(total):.1%}"),
    ]


def _bar(one: Instruction) -> Bar:
    direction = "" if one.direction is None else f", {one.direction.name.lower()}"
    return Bar(
        lane=one.engine.value,
        start=one.start,
        cycles=one.cycles,
        operation=one.operation,
        name=one.name,
        group=one.group,
        detail=one.command + direction,
        layer=one.block,
        bytes=one.bytes,
    )


def _rows(timeline: Timeline, by: GroupBy) -> tuple[Row, ...]:
    return tuple(
        Row(
            operation=cost.operation,
            group=cost.name,
            count=cost.instructions,
            tiu_cycles=cost.tiu_cycles,
            gdma_cycles=cost.gdma_cycles,
            alone_cycles=cost.alone_cycles,
            bytes=cost.bytes,
        )
        for cost in costs(timeline, by)
    )
