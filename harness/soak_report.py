"""The rows of the soak compile as a page of Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cases import parse_case
from harness.soak import BOARD_BYTES, SYSTEM_BYTES, Road

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.soak import Row

_HEADINGS = (
    "size", "precision", "graph", "release", "road", "outcome", "seconds", "peak GiB", "bmodel GB", "coefficients GB",
    "instructions MB", "run time MB", "predicted ms", "predicted tokens/s", "fits a board",
)  # fmt: skip

_ABOUT = """\
# Sizes and precisions through the compiler

Made by `make soak-compile` (`rwkv-tpu soak-compile`, see [sizes.md](sizes.md)) from synthetic weights of the published
sizes. Seconds and memory are of the machine that compiled, some of it while other work ran there; a graph that was
found in the cache has the figures of when it was compiled. Milliseconds and tokens/s are **predicted** by the compiler,
one part after the other, without what it costs to launch them; nothing here was measured on a board.

Road: *whole* is one graph; *blocks* is one for the embedding, each layer and the head, all compiled; of *one block*,
only the embedding, the first layer, the middle one and the head were compiled, and the middle one **counts for all
other layers**, which have the same shapes: its bytes and milliseconds are that multiplication, its seconds are not.

A board is taken to have {board:.0f} GiB, of which {system:.0f} GiB are the system's: an assumption, to be set on a real
one. What the bmodel takes of it (coefficients, instructions, memory between operations, and the states of one sequence,
before and after) is counted by the release's `model_tool` and **predicted** to fit or not, never tried. One graph alone
a row: a bmodel with decode and prefill takes the coefficients of its layers twice (sizes.md).
"""


def to_markdown(rows: Sequence[Row]) -> str:
    """The whole page."""
    lines = [_ABOUT.format(board=BOARD_BYTES / 2**30, system=SYSTEM_BYTES / 2**30), _line(_HEADINGS)]
    lines.append(_line(["---"] * 6 + ["---:"] * 8 + ["---"]))
    lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Row) -> list[str]:
    case = parse_case(row.case)
    counted = "" if row.road == Road.WHOLE.value else f", {row.compiled} of {row.parts} graphs"
    cells = [row.size, case.quantization.value, case.graph.name, row.release, row.road + counted]
    if row.error:
        return [*cells, row.error.replace("|", "\\|"), *[""] * 9]
    return [
        *cells,
        "compiled",
        f"{row.seconds:.0f}",
        f"{row.peak_bytes / 2**30:.1f}",
        f"{row.bmodel_bytes / 1e9:.2f}",
        f"{row.coefficient_bytes / 1e9:.2f}",
        f"{row.instruction_bytes / 1e6:.1f}",
        f"{row.runtime_bytes / 1e6:.1f}",
        f"{row.predicted_ms:.2f}",
        f"{row.tokens_per_s:.1f}",
        row.fits,
    ]
