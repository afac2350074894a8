"""A board's health as records keep it; what is read, and how, stands in :mod:`harness.device.sensors`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from harness.device import sensors
from harness.device.board import Board, BoardKind
from reports.schema import Reading

if TYPE_CHECKING:
    from collections.abc import Iterable


def read_health(board: Board) -> tuple[Reading, ...]:
    """Read everything that the platform of a board of this machine offers; always the same names, in the same order."""
    if board.simulated:
        return unavailable("the simulator has no sensors, no driver and no firmware")
    return as_readings(sensors.read(sensors_kind(board), board.number, str(board.root)))


def sensors_kind(board: Board) -> str:
    """How the sensors call this kind of board."""
    return sensors.PCIE if board.kind is BoardKind.PCIE else sensors.SOC


def as_readings(fields: Iterable[dict[str, Any]]) -> tuple[Reading, ...]:
    """What the sensors gave, on whichever machine."""
    return tuple(msgspec.convert(list(fields), list[Reading]))


def unavailable(why: str) -> tuple[Reading, ...]:
    """Every reading, each with the same reason for not being there."""
    return tuple(Reading(name=name, value=None, unit=unit, why_unavailable=why) for name, unit in sensors.NAMES)


def remarks(readings: tuple[Reading, ...]) -> list[str]:
    """What in *readings* makes a measurement doubtful."""
    known = {reading.name: reading.value for reading in readings}
    clock, top = known.get("tpu_clock"), known.get("tpu_clock_max")
    if isinstance(clock, float) and isinstance(top, float) and clock < top:
        return [f"the clock is at {clock:g} MHz of {top:g}: throttled, or left low"]
    return []
