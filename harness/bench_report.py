"""The results of ``rwkv-tpu bench-compile`` as JSON, for programs, and as Markdown, for the documentation.

Equal compiles give equal bytes: there is no date in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from harness.bench_compile import loop_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compile.storage import Matrices, Storage
    from compile.toolchain import Toolchain
    from harness.bench_compile import Result

HEADINGS = ("row", "target", "predicted", "", "floor", "share", "prototype", "first", "loop", "ratio", "best", "change")
"""Of the columns of :func:`cells`."""

NARROW_HEADINGS = ("row", "predicted", "target", "floor\nshare", "loop\nratio", "best\nchange")
"""Of the columns of :func:`narrow_cells`."""

STORAGE_HEADINGS = ("row", "matrices as named", "matrices above", "bytes above", "operations in float32")
"""Of the columns of :func:`storage_cells`."""

NARROW_STORAGE_HEADINGS = ("row", "matrices\nas named", "matrices\nabove", "bytes\nabove", "operations\nin float32")
"""Of the columns of :func:`narrow_storage_cells`."""

NOTE = (
    "Milliseconds, predicted by the compiler's cycle profile, one cycle a nanosecond; nothing here was measured. "
    "Share: of the speed that the floor allows. Ratio: the loop's time over the row's. Change: against the best that "
    "is recorded for this release; more than +1 % is a failure. What is marked * is an earlier prediction of TPU-MLIR "
    "1.30.2, recorded and not made again, or made from one: a loop of many tokens takes too long to compile (32 took a "
    "quarter of an hour). A loop without a mark was compiled in this run."
)
"""What a reader of the table must know."""

STORAGE_NOTE = (
    "What is more precise than a row's name: constant matrices that the compiled model stores in more bits, and the "
    "operations, of all that compute, whose result is float32. A matrix that the compiler cuts counts as its pieces."
)


def cells(result: Result) -> tuple[str, ...]:
    """A row of the table in words."""
    row = result.row
    return (
        row.id,
        f"{row.target_ms:.2f}",
        _ms(result.cycles) or result.verdict.value,
        "met" if result.met else "missed",
        _ms(result.floor_ns),
        _percent(result.share),
        _earlier(row.prototype_ms),
        _earlier(row.first_ms),
        _ms(result.loop_cycles) or _earlier(row.loop_ms),
        _ratio(result),
        _ms(result.best) or result.verdict.value,
        _change(result.change),
    )


def narrow_cells(result: Result) -> tuple[str, ...]:
    """The same in two lines a row, so that a terminal of 80 columns has room for every figure."""
    row = result.row
    earlier = {"prototype": _earlier(row.prototype_ms), "first": _earlier(row.first_ms)}
    return (
        f"{row.id}\n{', '.join(f'{name} {ms}' for name, ms in earlier.items() if ms)}",
        _ms(result.cycles) or result.verdict.value.replace(" compile", "\ncompile"),
        f"{row.target_ms:.2f}\n{'met' if result.met else 'missed'}",
        f"{_ms(result.floor_ns)}\n{_percent(result.share)}",
        f"{_ms(result.loop_cycles) or _earlier(row.loop_ms)}\n{_ratio(result)}",
        f"{_ms(result.best) or 'none yet'}\n{_change(result.change)}",
    )


def storage_cells(result: Result) -> tuple[str, ...] | None:
    """What a row's compiled model stores, in words; None of one that does not compile."""
    if result.storage is None:
        return None
    own, above = _own_and_above(result, result.storage)
    return (
        result.row.id,
        ", ".join(f"{one.count} of {one.bits} bits" for one in own) or "none",
        ", ".join(f"{one.count} of {one.bits} bits" for one in above) or "none",
        " ".join(_bytes(above, result.storage)),
        f"{result.storage.f32_operations:,} of {result.storage.operations:,}",
    )


def narrow_storage_cells(result: Result) -> tuple[str, ...] | None:
    """The same, a kind of matrix a line, for a terminal of 80 columns."""
    if result.storage is None:
        return None
    own, above = _own_and_above(result, result.storage)
    return (
        result.row.id,
        "\n".join(f"{one.count} x {one.bits} bits" for one in own) or "none",
        "\n".join(f"{one.count} x {one.bits} bits" for one in above) or "none",
        "\n".join(_bytes(above, result.storage)),
        f"{result.storage.f32_operations:,}\nof {result.storage.operations:,}",
    )


def to_json(results: Sequence[Result], toolchain: Toolchain) -> bytes:
    """All figures, full precision; null is what is not known."""
    table = {
        "predicted_by": f"TPU-MLIR {toolchain.compiler_commit}",
        "release": toolchain.version,
        "wheel_sha256": toolchain.wheel_sha256,
        "rows": [_fields(result) for result in results],
    }
    return msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n"


def to_markdown(results: Sequence[Result], toolchain: Toolchain) -> str:
    """Both tables, with what must be known to read them."""
    stored = [found for result in results if (found := storage_cells(result))]
    what = (
        f"Written by `make bench-compile` with TPU-MLIR {toolchain.compiler_commit}; do not edit. Synthetic weights of "
        "published sizes; embedding and head included, but where a row is of one block. Prefill gives the last "
        "position's logits."
    )
    failures = [f"- {result.row.id}: {result.error.splitlines()[0]}" for result in results if result.error]
    parts = [
        "# Predicted performance, row by row",
        what,
        _markdown_table(HEADINGS, [cells(result) for result in results]),
        NOTE,
        "## What stays more precise than the name says",
        STORAGE_NOTE,
        _markdown_table(STORAGE_HEADINGS, stored),
        *(["## What does not compile", "\n".join(failures)] if failures else []),
    ]
    return "\n\n".join(parts) + "\n"


def _fields(result: Result) -> dict[str, Any]:
    row = result.row
    return {
        "id": row.id,
        "case": row.case,
        "size": row.size,
        "block": row.block,
        "target_ms": row.target_ms,
        "predicted_cycles": result.cycles,
        "met": result.met,
        "floor_ns": result.floor_ns,
        "share_of_floor": result.share,
        "prototype_ms": row.prototype_ms,
        "first_ms": row.first_ms,
        "loop_ms": row.loop_ms,
        "loop_predicted_cycles": result.loop_cycles,
        "times_faster_than_loop": result.times_faster,
        "loop_compiles_in_minutes": loop_row(row) is not None,
        "best_cycles": result.best,
        "change": result.change,
        "verdict": result.verdict.value,
        "error": result.error.partition("\n")[0] or None,
        "bmodel_bytes": result.bmodel_bytes or None,
        "profile": result.profile,
        "storage": result.storage,
    }


def _ms(cycles: float | None) -> str:
    return "" if cycles is None else f"{cycles / 1e6:.4f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _ratio(result: Result) -> str:
    mark = "*" if result.loop_cycles is None else ""
    return "" if result.times_faster is None else f"{result.times_faster:.2f}{mark}"


def _change(share: float | None) -> str:
    return "" if share is None else f"{share:+.2%}"


def _earlier(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.2f}*"


def _own_and_above(result: Result, storage: Storage) -> tuple[tuple[Matrices, ...], tuple[Matrices, ...]]:
    """Matrices in as many bits as the row's name says, and those in more."""
    above = storage.above(result.row.point.quantization)
    return tuple(one for one in storage.matrices if one not in above), above


def _bytes(above: Sequence[Matrices], storage: Storage) -> tuple[str, ...]:
    """How many bytes those above take, and which share of all that is."""
    total = sum(one.bytes for one in above)
    share = total / max(1, sum(one.bytes for one in storage.matrices))
    return (f"{total:,}", f"({share:.1%})") if above else ("none",)


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line).replace("*", "\\*") + " |" for line in lines)
