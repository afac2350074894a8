"""What became of one compile, as ``rwkv-tpu compile`` tells it: the words of the table and the keys of the JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from compile.one_sign import Cut  # noqa: TC001 - msgspec reads the annotations
from compile.stages import read_progress
from compile.wide import declared_wide
from runtime.description import MESSAGE_LIMIT, launch_messages

if TYPE_CHECKING:
    from compile.compiler import Bmodel
    from compile.storage import Storage
    from compile.toolchain import Toolchain
    from harness.cases import Case
    from harness.checkpoints import Model


class StageReport(msgspec.Struct, frozen=True, kw_only=True):
    """One stage: what it took, and what it made, by name and SHA-256; empty where an older result does not tell."""

    stage: str
    seconds: float
    peak_bytes: int
    log: str = ""
    artefacts: dict[str, str] = {}


class CompileReport(msgspec.Struct, frozen=True, kw_only=True):
    """A finished compile. Times of a call are predicted by the compiler; no figure is a measurement of a chip.

    Attributes:
        cached: whether it was found in the cache; times and memory are those of when it was really compiled.
        seconds: of all stages.
        peak_bytes: of the stage that took most.
        tokens_per_s: at the predicted time, over the tokens of a call.
        matrices: bits of an element, how many matrices are stored so, and in how many bytes.
        declared_wider: products whose matrix our graph asks to be left in F16 (:mod:`compile.wide`).
        wider: those that the compiler left in more bits than the precision's name says, undeclared.
        cut: products that lose their largest weights to the compiler's coder (:mod:`compile.one_sign`); None where that
            is unknown.
        launch_message_bytes: of the longest message that launches a net of it; from :data:`MESSAGE_LIMIT` on, states
            should be stacked into fewer tensors.
        differences: between this and a second compile, with ``--twice``; None where it was not asked for.
    """

    case: str
    checkpoint: str
    checkpoint_sha256: str
    toolchain: str
    cached: bool
    bmodel: str
    bmodel_bytes: int
    bmodel_sha256: str
    undated_sha256: str
    seconds: float
    peak_bytes: int
    predicted_ms: float
    predicted_cycles: int
    predicted_tokens_per_s: float
    ddr_read_bytes: int
    ddr_write_bytes: int
    ddr_copy_bytes: int
    tiu_instructions: int
    gdma_instructions: int
    flops: int
    stages: tuple[StageReport, ...]
    matrices: tuple[dict[str, int], ...]
    wider: tuple[str, ...]
    declared_wider: tuple[str, ...] = ()
    cut: tuple[Cut, ...] | None = None
    launch_message_bytes: int = 0
    differences: tuple[str, ...] | None = None


def report_of(case: Case, model: Model, toolchain: Toolchain, bmodel: Bmodel, storage: Storage | None) -> CompileReport:
    """The report of a bmodel; *storage* is None of one that was joined of parts."""
    result, profile = bmodel.result, bmodel.result.profile
    declared = declared_wide(bmodel.folder)
    return CompileReport(
        case=case.id,
        checkpoint=model.checkpoint.name,
        checkpoint_sha256=model.checkpoint.sha256,
        toolchain=toolchain.compiler_commit,
        cached=bmodel.cached,
        bmodel=str(bmodel.path),
        bmodel_bytes=result.bmodel_bytes,
        bmodel_sha256=result.bmodel_sha256,
        undated_sha256=result.undated_sha256,
        seconds=sum(cost.seconds for cost in result.costs.values()),
        peak_bytes=max(cost.peak_bytes for cost in result.costs.values()),
        predicted_ms=profile.predicted_ms,
        predicted_cycles=profile.predicted_cycles,
        predicted_tokens_per_s=1e3 * case.graph.T / profile.predicted_ms,
        ddr_read_bytes=profile.ddr_read_bytes,
        ddr_write_bytes=profile.ddr_write_bytes,
        ddr_copy_bytes=profile.ddr_copy_bytes,
        tiu_instructions=profile.tiu_instructions,
        gdma_instructions=profile.gdma_instructions,
        flops=profile.flops,
        stages=_stages(bmodel),
        matrices=()
        if storage is None
        else tuple({"bits": one.bits, "count": one.count, "bytes": one.bytes} for one in storage.matrices),
        wider=tuple(name for name in result.wider if name not in declared),
        declared_wider=declared,
        cut=result.cut,
        launch_message_bytes=max(launch_messages(bmodel.path).values()),
    )


def _stages(bmodel: Bmodel) -> tuple[StageReport, ...]:
    progress = read_progress(bmodel.folder)
    told = {one.stage.value: one for one in progress.done} if progress else {}
    return tuple(
        StageReport(
            stage=name,
            seconds=cost.seconds,
            peak_bytes=cost.peak_bytes,
            log=told[name].log if name in told else "",
            artefacts={file.name: file.sha256 for file in told[name].artefacts} if name in told else {},
        )
        for name, cost in bmodel.result.costs.items()
    )


def facts_of(report: CompileReport) -> list[tuple[str, str]]:
    """The figures in words, in the order of a table."""
    found = [
        ("checkpoint", f"{report.checkpoint}, sha256 {report.checkpoint_sha256[:12]}"),
        ("compiler", report.toolchain),
        ("bmodel", f"{report.bmodel_bytes:,} bytes, sha256 {report.bmodel_sha256[:12]}"),
        ("without its date", report.undated_sha256[:12] or "unknown: compiled before this was kept"),
        ("compiled in", f"{report.seconds:.1f} s{', found in the cache' if report.cached else ''}"),
        ("memory at most", f"{report.peak_bytes / 1e9:.2f} GB"),
        ("predicted time of a call", f"{report.predicted_ms:.4f} ms, {report.predicted_cycles:,} cycles"),
        ("predicted rate", f"{report.predicted_tokens_per_s:,.1f} tokens/s"),
        ("read from DDR", f"{report.ddr_read_bytes:,} bytes"),
        ("written to DDR", f"{report.ddr_write_bytes:,} bytes"),
        ("copied inside DDR", f"{report.ddr_copy_bytes:,} bytes"),
        ("instructions", f"{report.tiu_instructions:,} TIU, {report.gdma_instructions:,} GDMA"),
    ]
    if report.launch_message_bytes:
        fits = report.launch_message_bytes < MESSAGE_LIMIT
        words = "" if fits else f": TOO LONG, should be below {MESSAGE_LIMIT:,}; use the option stacked_state"
        found.append(("message of a launch", f"{report.launch_message_bytes:,} bytes{words}"))
    found += [
        (f"matrices in {one['bits']} bits", f"{one['count']}, {one['bytes']:,} bytes with steps and zero points")
        for one in report.matrices
    ]
    if report.declared_wider:
        found.append(("left in 16 bits, as our graph asks", f"{len(report.declared_wider)} matrices of time-mix"))
    if report.wider:
        found.append(("LEFT IN MORE BITS by the compiler", "\n".join(report.wider)))
    if report.cut is None:
        found.append(("largest weights cut off", "unknown: compiled before this was kept, or in another format"))
    elif report.cut:
        lines = [
            f"{one.product}: in {one.groups:,} of {one.of:,} groups, up to {one.worst:.0%} of the largest"
            for one in report.cut
        ]
        found.append(("LARGEST WEIGHTS CUT OFF by the compiler", "\n".join(lines)))
    if report.differences is not None:
        found.append(("compiled once more", "\n".join(report.differences) or "the same, but for the date"))
    return found
