"""The size and precision grid through the compiler: what compiles, with how much memory, how fast it should be.

A size is compiled as a whole where the compiler's memory allows it, else part by part; or of its layers the first and
the middle one alone, and the rest is the middle one again, since all but the first have the same shapes.
"""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from compile.batch import compile_all, needed_bytes
from compile.compiler import CompileError
from compile.device_memory import device_memory
from compile.parts import parts_of
from harness.cases import parse_case
from harness.jobs import job_of, part_jobs
from harness.paths import cache_folder
from harness.sizes import SIZES, model_of_size
from harness.weights import weights_of_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compile.compiler import Bmodel, Job
    from compile.device_memory import DeviceMemory
    from compile.toolchain import Toolchain
    from harness.cases import Case
    from reference.shape import ModelShape

TABLE = Path(__file__).parent.parent / "docs" / "soak-compile.json"
"""The rows of all runs so far, the latest of each point."""

BOARD_BYTES = 16 << 30
SYSTEM_BYTES = 2 << 30
"""What the operating system keeps of a board's memory: an assumption, boards let it be set."""

_Number = TypeVar("_Number", int, float)

_STATE_BYTES = 4
_LARGEST_ALLOCATION = 1 << 32  # a size of device memory is a number of 32 bits


class Road(Enum):
    """How a graph is compiled."""

    WHOLE = "whole"
    BLOCKS = "blocks"  # every part by itself
    ONE_BLOCK = "one block"  # embedding, first and middle layer, head; the other layers count as the middle one


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one graph of one size in one precision.

    Attributes:
        size: by the name of the release; the weights are synthetic.
        case: id of the case, without a word of the road.
        release: of the compiler.
        road: value of a :class:`Road`.
        compiled: graphs that were compiled.
        parts: graphs that the whole consists of.
        error: stage and words, where it does not compile; then nothing below is there.
        seconds: wall time of all compiles; of one block, of those that were made.
        peak_bytes: most memory that a process of the compiler had.
        bmodel_bytes: of all files; each has a copy of the firmware, which a joined one has once.
        coefficient_bytes: weights and constants on the device.
        instruction_bytes: on the device.
        runtime_bytes: between operations, of the part that needs most.
        state_bytes: of one sequence.
        largest_net_bytes: coefficients of the part that has most, which are one allocation.
        predicted_ms: of a call, one part after the other; by the compiler, no measurement.
    """

    size: str
    case: str
    release: str
    road: str
    compiled: int = 0
    parts: int = 0
    error: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0
    bmodel_bytes: int = 0
    coefficient_bytes: int = 0
    instruction_bytes: int = 0
    runtime_bytes: int = 0
    state_bytes: int = 0
    largest_net_bytes: int = 0
    predicted_ms: float = 0.0

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The point: of two rows with the same, the later one counts."""
        return self.size, self.case, self.release, self.road

    @property
    def tokens_per_s(self) -> float:
        """Predicted."""
        return 1000 * parse_case(self.case).graph.T / self.predicted_ms

    @property
    def device_bytes(self) -> int:
        """What it takes of a board with one sequence: the states are there twice, before and after a call."""
        return self.coefficient_bytes + self.instruction_bytes + self.runtime_bytes + 2 * self.state_bytes

    @property
    def fits(self) -> str:
        """Whether a board holds it, in words: predicted from the bytes, never tried."""
        if self.largest_net_bytes >= _LARGEST_ALLOCATION:
            return "no: one net's coefficients exceed the 4 GiB of an allocation"
        return "yes" if self.device_bytes <= BOARD_BYTES - SYSTEM_BYTES else "no: more than 16 GiB less the system"


def soak(
    points: Sequence[tuple[str, Case]],
    toolchain: Toolchain,
    road: Road | None,
    *,
    workers: int,
    memory_bytes: int,
    timeout_s: float,
    say: Callable[[str], None],
) -> list[Row]:
    """Compile point after point, or find them compiled; what does not compile is a row too.

    Args:
        points: sizes, each with a case.
        toolchain: the compiler.
        road: one for all; None for whole graphs where their compile fits into *memory_bytes*, and blocks elsewhere.
        workers: compiles at a time.
        memory_bytes: for all that run, by :func:`compile.batch.needed_bytes`.
        timeout_s: limit for each stage of a compile, in seconds.
        say: receives one line of progress at a time.
    """
    rows = []
    for number, (size, case) in enumerate(points, 1):
        say(f"[{number}/{len(points)}] {size} {case.id}")
        chosen = road or (Road.WHOLE if fits_whole(size, memory_bytes) else Road.BLOCKS)
        jobs, times = _jobs(size, case, toolchain, chosen)
        about: dict[str, object] = {"size": size, "case": case.id, "release": toolchain.version, "road": chosen.value}
        about |= {"compiled": len(jobs), "parts": sum(times)}
        try:
            bmodels = compile_all(
                jobs, cache_folder(), workers=workers, memory_bytes=memory_bytes, say=say, timeout_s=timeout_s
            )
        except (CompileError, BrokenProcessPool) as error:
            words = str(error).splitlines()[0] if isinstance(error, CompileError) else "a compile was killed"
            row = msgspec.convert(about | {"error": words}, type=Row)
        else:
            memory = [device_memory(bmodel.path, toolchain) for bmodel in bmodels]
            row = _row(about, bmodels, memory, times, weights_of_size(size).shape)
        rows.append(row)
        told = row.error or f"{row.predicted_ms:.3f} ms a call, predicted; on a board: {row.fits}"
        say(f"[{number}/{len(points)}] {size} {case.id}: {told}")
    return rows


def fits_whole(size: str, memory_bytes: int) -> bool:
    """Whether the whole graph of a size compiles within so much memory."""
    return needed_bytes(weights_of_size(size).arrays) <= memory_bytes


def _jobs(size: str, case: Case, toolchain: Toolchain, road: Road) -> tuple[list[Job], list[int]]:
    """What to compile, and how often each counts."""
    weights = weights_of_size(size)
    if road is Road.WHOLE:  # what other commands compile whole is in memory as a whole, and found again by its values
        return [job_of(case, model_of_size(size) if size in SIZES else weights, toolchain)], [1]
    parts = parts_of(case.graph, weights.shape.n_layer)
    times = [1] * len(parts)
    if road is Road.ONE_BLOCK:
        middle = weights.shape.n_layer // 2
        parts = [part for part in parts if part.block in {None, 0, middle}]
        times = [weights.shape.n_layer - 1 if part.block == middle else 1 for part in parts]
    return part_jobs(case, weights, toolchain, parts), times


def _row(
    about: dict[str, object],
    bmodels: Sequence[Bmodel],
    memory: Sequence[DeviceMemory],
    times: Sequence[int],
    shape: ModelShape,
) -> Row:
    def total(values: Sequence[_Number]) -> _Number:
        return sum((n * value for n, value in zip(times, values, strict=True)), start=values[0] * 0)

    costs = [cost for bmodel in bmodels for cost in bmodel.result.costs.values()]
    layer = 2 * shape.n_embd + shape.n_head * shape.head_size**2
    return msgspec.convert(
        about
        | {
            "seconds": sum(cost.seconds for cost in costs),
            "peak_bytes": max(cost.peak_bytes for cost in costs),
            "bmodel_bytes": total([bmodel.result.bmodel_bytes for bmodel in bmodels]),
            "coefficient_bytes": total([one.coefficients for one in memory]),
            "instruction_bytes": total([one.instructions for one in memory]),
            "runtime_bytes": max(one.runtime for one in memory),
            "state_bytes": _STATE_BYTES * shape.n_layer * layer,
            "largest_net_bytes": max(one.coefficients for one in memory),
            "predicted_ms": total([bmodel.result.profile.predicted_ms for bmodel in bmodels]),
        },
        type=Row,
    )


def keep(rows: Sequence[Row], path: Path) -> tuple[Row, ...]:
    """Put *rows* among those that the file has, in place of earlier ones of the same points; all of them."""
    known = {row.key: row for row in read_rows(path)}
    known |= {row.key: row for row in rows}
    every = tuple(sorted(known.values(), key=_order))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".new")
    whole.write_bytes(msgspec.json.format(msgspec.json.encode(every), indent=1) + b"\n")
    whole.replace(path)
    return every


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a file; none where there is none.

    Raises:
        msgspec.DecodeError: it is no file of rows.
    """
    return msgspec.json.decode(path.read_bytes(), type=tuple[Row, ...]) if path.is_file() else ()


def _order(row: Row) -> tuple[float, int, str, str, str]:
    case = parse_case(row.case)
    precisions = [one.value for one in type(case.quantization)]
    size = float(row.size.rstrip("B"))
    return size, precisions.index(case.quantization.value), f"{case.graph.T:06}", row.road, row.release
