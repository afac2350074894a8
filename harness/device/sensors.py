"""What a board tells of itself: temperature, clock, power, memory, driver, firmware. Python 3.8, no packages, one file.

It reads on the machine that the board is in: it is imported here, and sent to the machine of a distant board. Which
sources there are differs between PCIe cards (the driver's folder in /proc) and SoC boards (Linux's own places).
Whatever cannot be read is said to be unavailable, with the reason; nothing here raises or launches anything.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

PCIE, SOC = "PCIe card", "SoC"  # see harness.device.board.BoardKind

NAMES = (
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
    ("bm_smi", ""),
)
"""Every reading, with its unit; always these, in this order."""

_AT_MOST_BYTES = 4096
_TOOL_WITHIN_S = 20
# A login without a terminal has not always libsophon's folder on its PATH.
_TOOL_FOLDERS = ("opt/sophon/libsophon-current/bin", "usr/local/bin", "usr/bin", "usr/sbin")

_NUMBER = re.compile(r"\s*(?P<number>[+-]?\d{1,18}(\.\d{1,9})?)\s*(?P<unit>[A-Za-z%]*)\s*", re.ASCII)
_HEAP = re.compile(r"npu heap size:\s*(?P<total>\d{1,18}) bytes, used:\s*(?P<used>\d{1,18}) bytes", re.ASCII)


class _Source(NamedTuple):
    """Where a reading comes from, and how its text is understood."""

    where: Path | list[str]  # a file or a command
    parse: Callable[[str], float | str | None]

    def __str__(self) -> str:
        return " ".join(self.where) if isinstance(self.where, list) else str(self.where)


def read(kind: str, number: int, root: str = "/") -> list[dict[str, Any]]:
    """Read everything that the platform offers.

    Args:
        kind: PCIE or SOC.
        number: of the board.
        root: where the file system begins, for tests.

    Returns:
        For each of NAMES the fields of :class:`reports.schema.Reading`.
    """
    sources = _pcie(number, Path(root)) if kind == PCIE else _soc(number, Path(root))
    return [_read(name, unit, sources.get(name), Path(root)) for name, unit in NAMES]


def parse_number(text: str, unit: str) -> float | None:
    """The number in text like ``45 C``; None for ``N/A``, for another unit, and for everything else."""
    match = _NUMBER.fullmatch(text)
    if match is None or match["unit"].lower() not in {"", unit.lower()}:
        return None
    value = float(match["number"])
    return value if math.isfinite(value) else None


def degrees_of_thousandths(text: str) -> float | None:
    """Degrees from thousandths of a degree, as Linux's thermal zones give them."""
    value = parse_number(text, "")
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
    folders = [str(root / folder) for folder in _TOOL_FOLDERS]
    folders = [os.environ.get("PATH", os.defpath), *folders] if root == Path("/") else folders
    program = shutil.which(command[0], path=os.pathsep.join(folders))
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_TOOL_WITHIN_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def bm_smi(number: int) -> list[str]:
    """The command that shows what libsophon's own tool knows of a board."""
    return ["bm-smi", f"--start_dev={number}", f"--last_dev={number}", "--text_format"]


def _pcie(number: int, root: Path) -> dict[str, _Source]:
    proc = root / "proc" / "bmsophon"
    chips = sorted(proc.glob(f"card*/bmsophon{number}"))
    chip = chips[0] if chips else proc / "cardN" / f"bmsophon{number}"  # the second for the reason shown
    return {
        "chip_temperature": _Source(chip / "chip_temp", lambda text: parse_number(text, "C")),
        "board_temperature": _Source(chip.parent / "board_temp", lambda text: parse_number(text, "C")),
        "tpu_clock": _Source(chip / "tpu_freq", lambda text: parse_number(text, "MHz")),
        "tpu_clock_max": _Source(chip.parent / "tpu_maxclk", lambda text: parse_number(text, "MHz")),
        "tpu_power": _Source(chip / "tpu_power", lambda text: parse_number(text, "W")),
        "board_power": _Source(chip.parent / "board_power", lambda text: parse_number(text, "W")),
        "driver": _Source(proc / "driver_version", one_line),
        "firmware": _Source(chip / "firmware_info", one_line),
        "boot_loader": _Source(chip / "boot_loader_version", one_line),
        "status": _Source(chip / "status", one_line),
        "bm_smi": _Source(bm_smi(number), one_line),
    }


def _soc(number: int, root: Path) -> dict[str, _Source]:
    thermal, heap = root / "sys/class/thermal", root / "sys/kernel/debug/ion/bm_npu_heap_dump/summary"
    return {
        "chip_temperature": _Source(thermal / "thermal_zone0/temp", degrees_of_thousandths),
        "board_temperature": _Source(thermal / "thermal_zone1/temp", degrees_of_thousandths),
        "memory_total": _Source(heap, lambda text: heap_bytes(text, "total")),
        "memory_used": _Source(heap, lambda text: heap_bytes(text, "used")),
        "tpu_usage": _Source(root / "sys/class/bm-tpu/bm-tpu0/device/npu_usage", _usage),
        "firmware": _Source(["bm_version"], one_line),
        "boot_loader": _Source(["bm_version"], _boot_line),
        "bm_smi": _Source(bm_smi(number), one_line),
    }


def _usage(text: str) -> float | None:
    match = re.search(r"\d{1,3}", text, re.ASCII)
    return None if match is None else float(match[0])


def _boot_line(text: str) -> str | None:
    return one_line("\n".join(line for line in text.splitlines() if line.upper().startswith(("BL", "BOOT"))))


def _read(name: str, unit: str, source: _Source | None, root: Path) -> dict[str, Any]:
    reading = {"name": name, "value": None, "unit": unit, "source": "", "why_unavailable": ""}
    if source is None:
        return {**reading, "why_unavailable": "this kind of board offers it in no file"}
    reading["source"] = str(source)
    try:
        text = _text(source, root)
    except OSError as error:
        why = f"{error.strerror}: {source}" if error.strerror else str(error)
        return {**reading, "why_unavailable": why}
    value = source.parse(text)
    return {**reading, "value": value, "why_unavailable": "" if value is not None else f"says {text[:60].strip()!r}"}


def _text(source: _Source, root: Path) -> str:
    """The text of the file or command.

    Raises:
        OSError: it cannot be had.
    """
    if isinstance(source.where, list):
        output = tool_output(source.where, root)
        if output is None:
            raise FileNotFoundError(2, "not installed, or did not end well")
        return output[:_AT_MOST_BYTES]
    with source.where.open("rb") as file:
        return file.read(_AT_MOST_BYTES).decode(errors="replace")
