"""What a board tells of itself in files: temperature, clock, power, memory, driver, firmware.

Which files there are differs between PCIe cards (the driver's folder in /proc) and SoC boards (Linux's own places).
Whatever cannot be read is said to be unavailable, with the reason; nothing here raises or touches the chip.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.device.board import Board, BoardKind
from reports.schema import Reading

if TYPE_CHECKING:
    from collections.abc import Callable

_AT_MOST_BYTES = 4096
_TOOL_WITHIN_S = 20

_NUMBER = re.compile(r"\s*(?P<number>[+-]?\d{1,18}(\.\d{1,9})?)\s*(?P<unit>[A-Za-z%]*)\s*", re.ASCII)
_HEAP = re.compile(r"npu heap size:\s*(?P<total>\d{1,18}) bytes, used:\s*(?P<used>\d{1,18}) bytes", re.ASCII)


def read_health(board: Board) -> tuple[Reading, ...]:
    """Read everything that the platform offers; always the same names, in the same order."""
    if board.kind is BoardKind.STAND_IN:
        why = "the simulator has no sensors, no driver and no firmware"
        return tuple(Reading(name=name, value=None, unit=unit, why_unavailable=why) for name, unit in _NAMES)
    sources = _pcie(board) if board.kind is BoardKind.PCIE else _soc(board)
    return tuple(_read(name, unit, sources.get(name)) for name, unit in _NAMES)


def remarks(readings: tuple[Reading, ...]) -> list[str]:
    """What in *readings* makes a measurement doubtful."""
    known = {reading.name: reading.value for reading in readings}
    clock, top = known.get("tpu_clock"), known.get("tpu_clock_max")
    if isinstance(clock, float) and isinstance(top, float) and clock < top:
        return [f"the clock is at {clock:g} MHz of {top:g}: throttled, or left low"]
    return []


def number(text: str, unit: str) -> float | None:
    """The number in text like ``45 C``; None for ``N/A``, for another unit, and for everything else."""
    match = _NUMBER.fullmatch(text)
    if match is None or match["unit"].lower() not in {"", unit.lower()}:
        return None
    value = float(match["number"])
    return value if math.isfinite(value) else None


def degrees_of_thousandths(text: str) -> float | None:
    """Degrees from thousandths of a degree, as Linux's thermal zones give them."""
    value = number(text, "")
    return None if value is None else value / 1000


def heap_bytes(text: str, which: str) -> float | None:
    """``total`` or ``used`` bytes from the summary of the TPU's heap on an SoC board."""
    match = _HEAP.search(text)
    return None if match is None else float(match[which])


def one_line(text: str) -> str | None:
    """The text itself, on one line; None for nothing and for ``N/A``."""
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    return None if line in {"", "N/A"} else line


def tool_output(command: list[str], root: Path = Path("/")) -> str | None:
    """What a vendor's command prints; None where it is not installed or does not end well. Only reading ones."""
    program = shutil.which(command[0]) if root == Path("/") else None
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_TOOL_WITHIN_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


_NAMES = (
    ("chip_temperature", "C"),
    ("board_temperature", "C"),
    ("tpu_clock", "MHz"),
    ("tpu_clock_max", "MHz"),
    ("tpu_power", "W"),
    ("board_power", "W"),
    ("memory_total", "bytes"),
    ("memory_used", "bytes"),
    ("tpu_usage", "%"),
    ("driver", ""),
    ("firmware", ""),
    ("boot_loader", ""),
    ("status", ""),
)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a reading comes from, and how its text is understood."""

    where: Path | list[str]  # a file or a command
    parse: Callable[[str], float | str | None]
    root: Path

    def text(self) -> str:
        """The text of the file or command.

        Raises:
            OSError: it cannot be had.
        """
        if isinstance(self.where, list):
            output = tool_output(self.where, self.root)
            if output is None:
                raise FileNotFoundError(2, "not installed, or did not end well")
            return output[:_AT_MOST_BYTES]
        with self.where.open("rb") as file:
            return file.read(_AT_MOST_BYTES).decode(errors="replace")

    def __str__(self) -> str:
        return " ".join(self.where) if isinstance(self.where, list) else str(self.where)


def _pcie(board: Board) -> dict[str, _Source]:
    proc = board.root / "proc" / "bmsophon"
    chips = sorted(proc.glob(f"card*/bmsophon{board.number}"))
    chip = chips[0] if chips else proc / "cardN" / f"bmsophon{board.number}"  # the second for the reason shown

    def source(path: Path, parse: Callable[[str], float | str | None]) -> _Source:
        return _Source(path, parse, board.root)

    return {
        "chip_temperature": source(chip / "chip_temp", lambda text: number(text, "C")),
        "board_temperature": source(chip.parent / "board_temp", lambda text: number(text, "C")),
        "tpu_clock": source(chip / "tpu_freq", lambda text: number(text, "MHz")),
        "tpu_clock_max": source(chip.parent / "tpu_maxclk", lambda text: number(text, "MHz")),
        "tpu_power": source(chip / "tpu_power", lambda text: number(text, "W")),
        "board_power": source(chip.parent / "board_power", lambda text: number(text, "W")),
        "driver": source(proc / "driver_version", one_line),
        "firmware": source(chip / "firmware_info", one_line),
        "boot_loader": source(chip / "boot_loader_version", one_line),
        "status": source(chip / "status", one_line),
    }


def _soc(board: Board) -> dict[str, _Source]:
    root = board.root
    thermal, heap = root / "sys/class/thermal", root / "sys/kernel/debug/ion/bm_npu_heap_dump/summary"
    usage = root / "sys/class/bm-tpu/bm-tpu0/device/npu_usage"
    return {
        "chip_temperature": _Source(thermal / "thermal_zone0/temp", degrees_of_thousandths, root),
        "board_temperature": _Source(thermal / "thermal_zone1/temp", degrees_of_thousandths, root),
        "memory_total": _Source(heap, lambda text: heap_bytes(text, "total"), root),
        "memory_used": _Source(heap, lambda text: heap_bytes(text, "used"), root),
        "tpu_usage": _Source(usage, _usage, root),
        "firmware": _Source(["bm_version"], one_line, root),
        "boot_loader": _Source(["bm_version"], _boot_line, root),
    }


def _usage(text: str) -> float | None:
    match = re.search(r"\d{1,3}", text, re.ASCII)
    return None if match is None else float(match[0])


def _boot_line(text: str) -> str | None:
    return one_line("\n".join(line for line in text.splitlines() if line.upper().startswith(("BL", "BOOT"))))


def _read(name: str, unit: str, source: _Source | None) -> Reading:
    if source is None:
        return Reading(name=name, value=None, unit=unit, why_unavailable="this kind of board offers it in no file")
    try:
        text = source.text()
    except OSError as error:
        why = f"{error.strerror}: {source}" if error.strerror else str(error)
        return Reading(name=name, value=None, unit=unit, source=str(source), why_unavailable=why)
    value = source.parse(text)
    why = "" if value is not None else f"says {text[:60].strip()!r}"
    return Reading(name=name, value=value, unit=unit, source=str(source), why_unavailable=why)
