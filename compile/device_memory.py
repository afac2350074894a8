"""What a bmodel takes of a board's memory, as the release's own ``model_tool`` counts it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from compile.process import run, tail

if TYPE_CHECKING:
    from compile.toolchain import Toolchain

_LINE = re.compile(r"^device mem size: \d+ \(weight: (\d+), instruct: (\d+), runtime: (\d+)\)", re.MULTILINE)
_NET = re.compile(r'^net \d+ : "([^"]+)", stage:\d+$')
_RANGE = re.compile(r": \[0x[0-9a-f]+, 0x([0-9a-f]+)\)$")
_TIMEOUT_S = 600.0


class DeviceMemoryError(RuntimeError):
    """``model_tool`` does not say it: names the file, and what it said instead."""


class DeviceMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on the device, of all nets of a bmodel together.

    Attributes:
        coefficients: weights and constants; equal ones of several nets count once, as they are there once.
        instructions: of both engines.
        runtime: what passes between operations, of the net that needs most: one runs at a time. What the runtime itself
            keeps, states above all, is not in it.
    """

    coefficients: int
    instructions: int
    runtime: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.coefficients + self.instructions + self.runtime


def device_memory(bmodel: Path, toolchain: Toolchain) -> DeviceMemory:
    """Ask ``model_tool --info``.

    Raises:
        DeviceMemoryError: it fails, or says it in another format.
    """
    return parse_info(_ask("--info", bmodel, toolchain), str(bmodel))


def net_coefficients(bmodel: Path, toolchain: Toolchain) -> dict[str, int]:
    """Bytes of the coefficients of each net, by its name, whether another has the same or not: ``--weight``.

    Raises:
        DeviceMemoryError: as above.
    """
    return parse_weights(_ask("--weight", bmodel, toolchain), str(bmodel))


def _ask(option: str, bmodel: Path, toolchain: Toolchain) -> str:
    command = [*toolchain.command("model_tool"), option, str(bmodel)]
    with tempfile.TemporaryDirectory(prefix="rwkv-tpu-info-") as name:
        folder = Path(name)
        log = folder / "log"
        done = run(command, folder=folder, log=log, environment=toolchain.environment(), timeout_s=_TIMEOUT_S)
        if done.status:
            raise DeviceMemoryError(f"model_tool {option} {bmodel} {done.ending}:\n{tail(log)}")
        return log.read_text(errors="replace")


def parse_weights(text: str, source: str) -> dict[str, int]:
    """The same from what ``model_tool --weight`` says: where each net's last coefficient ends.

    Raises:
        DeviceMemoryError: no net, or one without coefficients.
    """
    ends: dict[str, int] = {}
    net = None
    for line in text.splitlines():
        if found := _NET.match(line):
            net = found[1]
            ends[net] = 0
        elif net is not None and (found := _RANGE.search(line)):
            ends[net] = max(ends[net], int(found[1], 16))
    if not ends or not all(ends.values()):
        wrong = next((name for name, end in ends.items() if not end), None)
        raise DeviceMemoryError(f"{source}: {f'no coefficients of net {wrong}' if wrong else 'no net'} in --weight")
    return ends


def parse_info(text: str, source: str) -> DeviceMemory:
    """The memory in what ``model_tool --info`` says; *source* is the file's name in an error.

    Raises:
        DeviceMemoryError: there is no such line.
    """
    found = _LINE.search(text)
    if found is None:
        last = "\n".join(text.splitlines()[-5:])
        raise DeviceMemoryError(
            f"{source}: no line 'device mem size: … (weight: …, instruct: …, runtime: …)' in\n{last}"
        )
    coefficients, instructions, runtime = map(int, found.groups())
    return DeviceMemory(coefficients=coefficients, instructions=instructions, runtime=runtime)
