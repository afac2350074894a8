"""Every instruction of a static bmodel as the compiler predicts it: when, how long, how many bytes, what it is for.

The file is ``compiler_profile_0.txt``, the same format in TPU-MLIR 1.28.1 and 1.30.2: a row has an instruction of the
compute engine on the left, one of the transfer engine on the right, or both. A cycle is a predicted nanosecond.

The number behind an instruction's layer, as in ``MatMul_474``, is a line of ``*_final.mlir`` in the same folder; what
that line says about its location is the name that the graph gave (see :mod:`compile.graphs.named`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from compile.profile import ProfileError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROFILE = "compiler_profile_0.txt"
FINAL_MLIR = "*_final.mlir"

DDR_BYTES_PER_NS = 64 * 2**30 / 1e9
"""What the compiler calls 100 % in its line ``DDR BW USAGE``: 64 GiB/s."""

_INSTRUCTION = re.compile(
    r"(?P<layer>\w+)_(?P<line>\d+)\|(?P<command>\w+)\|s:(?P<start>\d+)\|b:\d+\|g:\d+\|e:(?P<end>-?\d+)\|t:(?P<cycles>\d+)"
    r"(?:\|dr:(?P<direction>\d+)\|sz:(?P<bytes>\d+)\|bw:[-+.\w]+)?"
)
_END = re.compile(r"API_END total_cycle:(\d+)\|")
_TOTALS = re.compile(r"TCYC : |GDMA SUMMARY : |DDR BW USAGE : |flops: ")
_HEADING = re.compile(r"[-#]+$|s: start time, b: bd_id|ENGINE_BD +ENGINE_GDMA")

_OPERATION = re.compile(r'"(?:tpu|top)\.(\w+)".*loc\((#loc\d*)\)\s*$')
_LOCATION = re.compile(r'(#loc\d*) = loc\("([^"]*)"\)')
_FUSED = re.compile(r"(#loc\d*) = loc\(fused\[(#loc\d*)")
_ARGUMENT = re.compile(r'%arg(\d+): [^%]*? loc\("([^"]*)"\)')
_LOADED_ARGUMENT = re.compile(r"load_(\d+)")

_BLOCK = re.compile(r"\bblocks\.(\d+)\b")


class Engine(Enum):
    """Which of the two did it; they work at the same time."""

    TIU = "TIU"  # computes, in local memory
    GDMA = "GDMA"  # moves


class Direction(Enum):
    """From where to where a transfer goes; the numbers are the file's."""

    READ = 0  # DDR to local memory
    WRITE = 1  # local memory to DDR
    COPY = 2  # DDR to DDR
    LOCAL = 3  # local memory to local memory

    @property
    def ddr_accesses(self) -> int:
        """How often a byte passes DDR."""
        return {Direction.COPY: 2, Direction.LOCAL: 0}.get(self, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction; times are predicted cycles, of which one is a nanosecond, from the start of the graph.

    Attributes:
        operation: the operation that it works for, as the TPU dialect calls it: ``MatMul``, ``Load``.
        line: that operation's line in the final MLIR.
        name: what it makes or moves, by the graph's names; empty where no MLIR was read.
        command: the hardware's command: ``MM2``, ``GDMA_TENSOR``.
        bytes: moved; 0 of the compute engine.
        direction: of a transfer; None of the compute engine.
    """

    engine: Engine
    start: int
    cycles: int
    operation: str
    line: int
    name: str = ""
    command: str
    bytes: int = 0
    direction: Direction | None = None

    @property
    def end(self) -> int:
        """The first cycle after it."""
        return self.start + self.cycles

    @property
    def bytes_per_ns(self) -> float:
        """Rate of a transfer; the same number in GB/s. The file's own ``bw`` is in GiB/s."""
        return self.bytes / self.cycles if self.cycles else 0.0

    @property
    def block(self) -> int | None:
        """The model's layer that it belongs to; None outside of all, such as in the head."""
        found = _BLOCK.search(self.name)
        return int(found[1]) if found else None

    @property
    def group(self) -> str:
        """The name without the layer's number: the same for all layers."""
        return _BLOCK.sub("blocks.*", self.name)


@dataclass(frozen=True)
class Timeline:
    """A whole profile, its instructions in the order of their start; subnets follow each other."""

    instructions: tuple[Instruction, ...]
    total_cycles: int

    def of(self, engine: Engine) -> tuple[Instruction, ...]:
        """The instructions of one engine."""
        return tuple(one for one in self.instructions if one.engine is engine)

    @cached_property
    def ddr_bytes(self) -> int:
        """What passes DDR; a copy passes twice."""
        return sum(one.bytes * one.direction.ddr_accesses for one in self.instructions if one.direction is not None)

    @property
    def ddr_bytes_per_ns(self) -> float:
        """Mean over the whole graph."""
        return self.ddr_bytes / self.total_cycles if self.total_cycles else 0.0

    @cached_property
    def busy(self) -> Busy:
        """How the engines share the time."""
        tiu, gdma = (self.of(engine) for engine in Engine)
        tiu_cycles, gdma_cycles = (sum(one.cycles for one in engine) for engine in (tiu, gdma))
        both = sum(covered(tiu, gdma))
        idle = self.total_cycles - (tiu_cycles + gdma_cycles - both)
        return Busy(tiu=tiu_cycles, gdma=gdma_cycles, both=both, neither=idle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """Predicted cycles in which an engine works."""

    tiu: int
    gdma: int
    both: int
    neither: int


class GroupBy(Enum):
    """What makes two instructions the same in a table."""

    NAME = "name"  # operation and name, summed over the model's layers
    KIND = "kind"  # the operation alone
    COMMAND = "command"  # engine and hardware command


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a group of instructions costs, in predicted cycles.

    Attributes:
        alone_cycles: of them, those in which the other engine stood still: what could be hidden, and is not.
    """

    operation: str
    name: str
    instructions: int
    tiu_cycles: int
    gdma_cycles: int
    alone_cycles: int
    bytes: int

    @property
    def cycles(self) -> int:
        """Of both engines."""
        return self.tiu_cycles + self.gdma_cycles

    @property
    def bytes_per_ns(self) -> float:
        """Rate while it transfers."""
        return self.bytes / self.gdma_cycles if self.gdma_cycles else 0.0


def costs(timeline: Timeline, by: GroupBy) -> list[Cost]:
    """Sums over the instructions that are the same, the dearest first."""
    sums: dict[tuple[str, str], list[int]] = {}
    for engine, other in ((Engine.TIU, Engine.GDMA), (Engine.GDMA, Engine.TIU)):
        mine = timeline.of(engine)
        for one, hidden in zip(mine, covered(mine, timeline.of(other)), strict=True):
            total = sums.setdefault(_key(one, by), [0, 0, 0, 0, 0])
            total[0] += 1
            total[1 if engine is Engine.TIU else 2] += one.cycles
            total[3] += one.cycles - hidden
            total[4] += one.bytes
    found = [
        Cost(
            operation=operation,
            name=name,
            instructions=total[0],
            tiu_cycles=total[1],
            gdma_cycles=total[2],
            alone_cycles=total[3],
            bytes=total[4],
        )
        for (operation, name), total in sums.items()
    ]
    return sorted(found, key=lambda cost: (-cost.cycles, cost.operation, cost.name))


def covered(mine: Sequence[Instruction], others: Sequence[Instruction]) -> list[int]:
    """For each instruction of one engine, the cycles in which the other engine works too; both in order of start."""
    found = []
    first = 0
    for one in mine:
        while first < len(others) and others[first].end <= one.start:
            first += 1
        cycles = 0
        for other in others[first:]:
            if other.start >= one.end:
                break
            cycles += min(one.end, other.end) - max(one.start, other.start)
        found.append(cycles)
    return found


def read_timeline(profile: Path, mlir: Path | None = None) -> Timeline:
    """Read a profile, and the names from the final MLIR: *mlir*, or the one in the profile's folder, if there is one.

    Raises:
        ProfileError: the profile is missing, or a line of it is not understood.
    """
    if not profile.is_file():
        raise ProfileError(f"{profile}: no such file; a static compile writes one, {PROFILE}")
    timeline = parse_timeline(profile.read_text(errors="replace"), str(profile))
    if mlir is None:
        beside = sorted(profile.parent.glob(FINAL_MLIR))
        mlir = beside[0] if len(beside) == 1 else None
    return timeline if mlir is None else named(timeline, mlir.read_text(errors="replace"))


def parse_timeline(text: str, source: str) -> Timeline:
    """The instructions in a profile's text; *source* is its name in an error.

    Raises:
        ProfileError: a line is not understood, or the file ends before its totals.
    """
    instructions: list[Instruction] = []
    offset = 0
    complete = False
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if end := _END.match(content):
            offset += int(end[1])
            complete = True
        elif content and not _HEADING.match(content) and not _TOTALS.match(content):
            complete = False
            instructions += [_instruction(part, offset, f"{source}:{number}") for part in content.split()]
    if not complete:
        raise ProfileError(f"{source}: should end with a line API_END: a dynamic compile, or one that was interrupted")
    instructions.sort(key=lambda one: one.start)
    timeline = Timeline(tuple(instructions), offset)
    for engine in Engine:
        for before, after in pairwise(timeline.of(engine)):
            if after.start < before.end:
                raise ProfileError(f"{source}: {engine.value} instructions overlap at cycle {after.start}")
    return timeline


def named(timeline: Timeline, mlir: str) -> Timeline:
    """The same with the graph's names, from the text of the final MLIR that the compiler made the bmodel from.

    An instruction whose line holds another operation stays without a name: the MLIR is of another compile.
    """
    lines = mlir.splitlines()
    locations: dict[str, str] = {}
    for line in lines:
        if found := _LOCATION.match(line):
            locations[found[1]] = found[2]
        elif found := _FUSED.match(line):
            locations[found[1]] = locations.get(found[2], "")
    names: dict[tuple[int, str], str] = {}
    arguments: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if "func.func" in line:
            arguments = dict(_ARGUMENT.findall(line))
        elif found := _OPERATION.search(line):
            location = locations.get(found[2], "")
            argument = _LOADED_ARGUMENT.fullmatch(location)
            names[number, found[1]] = arguments.get(argument[1], "") if argument else plain_name(location)
    instructions = (replace(one, name=names.get((one.line, one.operation), "")) for one in timeline.instructions)
    return replace(timeline, instructions=tuple(instructions))


def plain_name(location: str) -> str:
    """A location as the graph's name for it.

    ``blocks.3.att.wkv_MatMul`` is ``blocks.3.att.wkv``; what the graph left without a name is called by its place,
    ``/blocks.3/att/Mul_12_output_0_Mul`` being ``blocks.3.att.Mul_12``. Where a location names two tensors, as that of
    a cast does, with the operation that it is for, the first is meant.
    """
    location = location.removeprefix("load_")
    if location.startswith("/"):
        return location[1:].partition("_output_0")[0].replace("/", ".")
    # The compiler's additions begin with ONNX's name of an operation, which alone has capitals, or with a format.
    return re.split(r"/|_[A-Z][a-z]|_(?:f16|bf16|f32)(?![a-z0-9])", location, maxsplit=1)[0].rstrip("_")


def _instruction(part: str, offset: int, where: str) -> Instruction:
    found = _INSTRUCTION.fullmatch(part)
    if found is None:
        raise ProfileError(
            f"{where}: {part!r} should be an instruction like MatMul_7|MM2|s:0|b:1|g:1|e:3|t:4: "
            "a release that writes another format?"
        )
    start, end, cycles = (int(found[key]) for key in ("start", "end", "cycles"))
    if end - start + 1 != cycles:
        raise ProfileError(f"{where}: {part!r} should end at s + t - 1 = {start + cycles - 1}")
    direction = found["direction"]
    if direction is not None and int(direction) > Direction.LOCAL.value:
        raise ProfileError(f"{where}: direction {direction}, but should be 0 to {Direction.LOCAL.value}")
    return Instruction(
        engine=Engine.TIU if direction is None else Engine.GDMA,
        start=offset + start,
        cycles=cycles,
        operation=found["layer"],
        line=int(found["line"]),
        command=found["command"],
        bytes=int(found["bytes"] or 0),
        direction=None if direction is None else Direction(int(direction)),
    )


def _key(one: Instruction, by: GroupBy) -> tuple[str, str]:
    if by is GroupBy.NAME:
        return one.operation, one.group
    if by is GroupBy.KIND:
        return one.operation, ""
    return one.command, one.engine.value
