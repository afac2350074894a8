"""Loads a board's libraries and touches as little as asked: ``python -m harness.device.probe FOLDER NUMBER UPTO``.

In a process of its own, because these libraries abort. One JSON object for each step goes to standard output; whatever
the libraries print goes to standard error. Each step does all of those before it.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from runtime import binding
from runtime.binding import DeviceMem, Vendor
from runtime.faults import DeviceError, RuntimeFault

_WITHIN_S = 120.0
_MEMORY_BYTES = (1 << 20, 4096, 12345)
_ROOT = Path(__file__).parent.parent.parent
_KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LANG")


class Step(Enum):
    """How far to go, in rising order of risk."""

    LOAD = "load"  # both libraries into a process
    VERSIONS = "versions"  # what they say of themselves, and which functions they lack
    COUNT = "count"  # how many devices they see
    OPEN = "open"  # the device
    CHIP = "chip"  # its identity and its driver
    MEMORY = "memory"  # take, write, read back and free device memory


class ProbeError(RuntimeError):
    """A step did not go well; the message has the libraries' last words."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What came out."""

    found: dict[str, Any]
    log: str


def probe(folder: Path, number: int, upto: Step) -> Probed:
    """Run the steps up to and with *upto* in a process of its own.

    Raises:
        ProbeError: a step failed, crashed or hung.
    """
    command = [sys.executable, "-m", "harness.device.probe", str(folder), str(number), upto.value]
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            cwd="/",
            env=environment | {"PYTHONPATH": str(_ROOT)},
            stdin=subprocess.DEVNULL,
            timeout=_WITHIN_S,
        )
    except subprocess.TimeoutExpired as error:
        raise ProbeError(_told(f"no answer within {_WITHIN_S:g} s", error.stdout, error.stderr)) from error
    found: dict[str, Any] = {}
    for line in done.stdout.decode(errors="replace").splitlines():
        found |= json.loads(line)
    if done.returncode or upto.value not in found:
        raise ProbeError(_told(found.get("error") or f"ended with code {done.returncode}", done.stdout, done.stderr))
    return Probed(found, done.stderr.decode(errors="replace"))


def missing_functions(vendor: Vendor) -> list[str]:
    """The functions that this project calls and the libraries lack."""
    libraries = [ctypes.CDLL(str(path)) for path in (vendor.bmlib, vendor.bmrt)]
    return sorted(name for name in binding.FUNCTIONS if not any(hasattr(one, name) for one in libraries))


def _told(what: str, stdout: bytes | None, stderr: bytes | None) -> str:
    steps = [next(iter(json.loads(line))) for line in (stdout or b"").decode(errors="replace").splitlines()]
    words = (stderr or b"").decode(errors="replace").splitlines()[-20:]
    done = ", ".join(step for step in steps if step != "error") or "nothing"
    return "\n  ".join([f"{what}; well went: {done}", *(["last words of the libraries:", *words] if words else [])])


def _main(folder: Path, number: int, upto: Step) -> None:
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever the libraries print

    def tell(step: Step, value: object) -> bool:
        os.write(replies, json.dumps({step.value: value}).encode() + b"\n")
        return step is upto

    try:
        _walk(folder, number, tell)
    except RuntimeFault as fault:
        os.write(replies, json.dumps({"error": f"{type(fault).__name__}: {fault}"}).encode() + b"\n")
        sys.exit(1)


def _walk(folder: Path, number: int, tell: Any) -> None:
    def library(*names: str) -> Path:
        return next((folder / name for name in names if (folder / name).is_file()), folder / names[-1])

    vendor = Vendor(library("libbmlib.so.0", "libbmlib.so"), library("libbmrt.so.1.0", "libbmrt.so"))
    if tell(Step.LOAD, [str(vendor.bmlib.resolve()), str(vendor.bmrt.resolve())]):
        return
    versions: dict[str, Any] = {}
    for name in ("libbmlib", "libbmrt"):
        told = vendor.call(f"{name}_version")
        versions[name] = told.decode(errors="replace") if told else None
    if tell(Step.VERSIONS, versions | {"missing": missing_functions(vendor)}):
        return
    count = ctypes.c_int()
    vendor.call("bm_dev_getcount", ctypes.byref(count))
    if tell(Step.COUNT, count.value):
        return
    if number >= count.value:  # libraries have aborted when asked for one
        raise DeviceError(f"there is no device {number}: the library counts {count.value}, from 0 on")
    handle = ctypes.c_void_p()
    vendor.call("bm_dev_request", ctypes.byref(handle), number)
    try:
        _touch(vendor, handle, tell)
    finally:
        vendor.call("bm_dev_free", handle)


def _touch(vendor: Vendor, handle: ctypes.c_void_p, tell: Any) -> None:
    if tell(Step.OPEN, True):  # noqa: FBT003 - the value of a JSON key
        return
    chip, driver = ctypes.c_uint32(), ctypes.c_int()
    vendor.call("bm_get_chipid", handle, ctypes.byref(chip))
    told: dict[str, Any] = {"chip_id": hex(chip.value)}
    try:
        vendor.call("bm_get_driver_version", handle, ctypes.byref(driver))
        told["driver"] = hex(driver.value)
    except RuntimeFault as fault:
        told |= {"driver": None, "why_no_driver": str(fault)}
    if tell(Step.CHIP, told):
        return
    pieces: list[DeviceMem] = []
    wrong = []
    try:
        contents = [os.urandom(size) for size in _MEMORY_BYTES]
        for content in contents:
            memory = DeviceMem()
            vendor.call("bm_malloc_device_byte", handle, ctypes.byref(memory), len(content))
            pieces.append(memory)
            vendor.call("bm_memcpy_s2d", handle, memory, content)
        for content, memory in zip(contents, pieces, strict=True):
            back = ctypes.create_string_buffer(len(content))
            vendor.call("bm_memcpy_d2s", handle, back, memory)
            wrong += [len(content)] if back.raw != content else []
    finally:
        for memory in pieces:
            vendor.call("bm_free_device", handle, memory)
    tell(Step.MEMORY, {"bytes": list(_MEMORY_BYTES), "wrong": wrong})


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), Step(sys.argv[3]))
