"""One open device: loaded bmodels, pieces of its memory, launches. Runs on Python 3.8, in the worker only.

Everything happens on one thread, because the driver's synchronisation counts the calls of the calling thread alone.
"""

from __future__ import annotations

import bisect
import ctypes
import hashlib
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime import cmodel
from runtime.age import remark
from runtime.binding import DeviceMem, DevStat, NetInfo, Profile, Shape, Tensor, Vendor
from runtime.bmodel import read_origin
from runtime.faults import BadBmodel, DeviceError, FunctionMissing, LibraryMissing, RuntimeFault

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LIBRARY_NAMES = (("libbmlib.so.0", "libbmlib.so"), ("libbmrt.so.1.0", "libbmrt.so"))
_CHIP_NAMES = {0x1686: "BM1684X"}

_BASIC = 0
"""The addressing mode in which a net copies its inputs and outputs on the device: they may be the same memory."""
_ADDRESSING_MODES = range(5)


class Device:
    """A device with its libraries; `close` must be called, and gives all its memory back."""

    def __init__(self, folder: Path, index: int, *, simulated: bool) -> None:
        """Load the libraries in *folder* and open device number *index*.

        Raises:
            LibraryMissing: a library is absent or does not load.
            DeviceError: the device does not open.
        """
        self._files = [_find(folder, names) for names in _LIBRARY_NAMES]
        self._vendor = Vendor(*self._files)
        count = ctypes.c_int()
        self._call("bm_dev_getcount", ctypes.byref(count))
        if not 0 <= index < count.value:
            raise DeviceError(f"there is no device {index}: the library counts {count.value}, from 0 on")
        self._handle = ctypes.c_void_p()
        self._call("bm_dev_request", ctypes.byref(self._handle), index)
        if simulated:
            cmodel.calm_threads()
            self._files.append(folder / cmodel.CHIP)
        self._runtime = ctypes.c_void_p(self._call("bmrt_create", self._handle))
        self._memory: dict[int, DeviceMem] = {}
        self._nets: dict[str, _LoadedNet] = {}

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._vendor.call(name, *arguments)

    def versions(self) -> dict[str, Any]:
        """Tell libraries, chip and driver as JSON values; null for what this device does not know."""
        return {
            "libbmlib": self._vendor.version("libbmlib_version") or "unknown",
            "libbmrt": self._vendor.version("libbmrt_version") or "unknown",
            "libraries": [
                {"path": str(path.resolve()), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                for path in self._files
            ],
            "chip_id": self._chip_id(),
            "driver": self._driver_version(),
            "runtime_flags": self._runtime_flags(),
        }

    def _chip_id(self) -> int:
        chip = ctypes.c_uint32()
        self._call("bm_get_chipid", self._handle, ctypes.byref(chip))
        return chip.value

    def _driver_version(self) -> int | None:
        driver = ctypes.c_int()
        try:
            self._call("bm_get_driver_version", self._handle, ctypes.byref(driver))
        except DeviceError:  # the simulator has no driver
            return None
        return driver.value

    def _runtime_flags(self) -> int | None:
        try:
            return int(self._call("bmrt_get_flags", self._runtime))
        except FunctionMissing:
            return None

    def computed_s(self) -> float | None:
        """Time the chip has computed for this thread so far, in seconds, as the driver counts it; None if nobody does.

        A count of zero is none: the simulator answers so, however much was launched.
        """
        profile = Profile()
        try:
            self._call("bm_get_profile", self._handle, ctypes.byref(profile))
        except DeviceError:  # or there is no such function
            return None
        return profile.tpu_process_time / 1e6 or None

    def memory_used_bytes(self) -> int | None:
        """Device memory in use, whoever uses it, to the MiB; None where nobody knows, as on the simulator."""
        found = DevStat()
        try:
            self._call("bm_get_stat", self._handle, ctypes.byref(found))
        except DeviceError:  # or there is no such function
            return None
        return found.mem_used << 20 if found.mem_total > 0 else None

    def remark(self, bmodel: Path) -> str | None:
        """What is doubtful about *bmodel* with these libraries, though it may well run.

        Raises:
            BadBmodel: it is none.
        """
        return remark(read_origin(bmodel).compiler, self._vendor.version("libbmrt_version") or "")

    def load(self, bmodel: Path) -> list[dict[str, Any]]:
        """Load *bmodel* beside those already there; describe its nets as JSON values.

        Raises:
            BadBmodel: it is for another chip, the library refuses it, it needs what this runtime does not know, or a
                net's name is taken.
        """
        origin = read_origin(bmodel)
        chip = _CHIP_NAMES.get(self._chip_id(), origin.chip)
        if origin.chip != chip:
            raise BadBmodel(f"{bmodel} is for {origin.chip or 'a chip that it does not name'}; the device is {chip}")
        number = self._call("bmrt_get_network_number", self._runtime)
        # Said beforehand, as the library may take the process down while it loads.
        runtime = self._vendor.version("libbmrt_version") or "of unknown version"
        age = (
            f"It was made by compiler {origin.compiler}; the runtime here is {runtime}. "
            "If the compiler is newer than the runtime, update libsophon"
        )
        sys.stderr.write(f"loading {bmodel}. {age}\n")
        try:
            self._call("bmrt_load_bmodel", self._runtime, str(bmodel).encode())
        except DeviceError as error:
            raise BadBmodel(f"{bmodel} was refused by the library: {error}. {age}") from error
        names = self._names()
        new = [name for name in names if name not in self._nets]
        if not new or number + len(new) != len(names):
            raise BadBmodel(f"{bmodel} holds no net with a new name; nets are now {names}. Compile it under another")
        for name in new:
            info = self._call("bmrt_get_network_info", self._runtime, name.encode()).contents
            if info.addr_mode not in _ADDRESSING_MODES:
                raise BadBmodel(f"net {name} of {bmodel} has the unknown addressing mode {info.addr_mode}. {age}")
            self._nets[name] = _LoadedNet(info)
        return [self._nets[name].describe(name) for name in new]

    def _names(self) -> list[str]:
        count = self._call("bmrt_get_network_number", self._runtime)
        names = ctypes.POINTER(ctypes.c_char_p)()
        self._call("bmrt_get_network_names", self._runtime, ctypes.byref(names))
        found = [(names[i] or b"").decode() for i in range(count)]
        libc = ctypes.CDLL(None)
        libc.free.argtypes = [ctypes.c_void_p]
        libc.free(names)
        return found

    def allocate(self, size_bytes: int) -> DeviceMem:
        """Take a piece of device memory; its content is whatever was there."""
        memory = DeviceMem()
        self._call("bm_malloc_device_byte", self._handle, ctypes.byref(memory), size_bytes)
        self._memory[memory.device_addr] = memory
        return memory

    def free(self, memory: DeviceMem) -> None:
        """Give *memory* back."""
        del self._memory[memory.device_addr]
        self._call("bm_free_device", self._handle, memory)

    def write(self, memory: DeviceMem, data: bytes | memoryview) -> None:
        """Copy *data* to all of *memory*."""
        if len(data) != memory.size:
            raise RuntimeFault(f"expected {memory.size} bytes for a piece of device memory, got {len(data)}")
        source = data if isinstance(data, bytes) else (ctypes.c_char * len(data)).from_buffer(data)
        self._call("bm_memcpy_s2d", self._handle, memory, source)

    def read(self, memory: DeviceMem, place: memoryview) -> None:
        """Copy all of *memory* to *place*, as long as it. Nothing may be running: `run` has synchronised."""
        self._call("bm_memcpy_d2s", self._handle, (ctypes.c_char * memory.size).from_buffer(place), memory)

    def copy(self, source: DeviceMem, target: DeviceMem) -> None:
        """Copy all of *source* to *target*, as long as it, on the device."""
        self._call("bm_memcpy_d2d_byte", self._handle, target, 0, source, 0, source.size)

    def synchronise(self) -> None:
        """Wait for all that this thread has asked of the device."""
        self._call("bm_thread_sync", self._handle)

    def bind(self, net: str, inputs: Sequence[DeviceMem], outputs: Sequence[DeviceMem]) -> Launch:
        """Prepare launches of *net* from *inputs* to *outputs*.

        Raises:
            RuntimeFault: no such net, another number of pieces, pieces of other sizes, or pieces that overlap where
                the net's addressing mode does not allow it.
        """
        loaded = self._nets.get(net)
        if loaded is None:
            raise RuntimeFault(f"no net is named {net!r}; loaded are {sorted(self._nets)}")
        _check_overlap(net, inputs, outputs, loaded.addr_mode)
        return Launch(net.encode(), loaded.tensors(loaded.inputs, inputs), loaded.tensors(loaded.outputs, outputs))

    def run(self, launches: Sequence[Launch]) -> float:
        """Launch nets one after the other and wait for all of them.

        Returns:
            Seconds of wall time, first launch to synchronisation.
        """
        user_memory, user_store_mode = True, False
        begin = time.perf_counter()
        for net, ins, outs in launches:
            self._call(
                "bmrt_launch_tensor_ex",
                self._runtime,
                net,
                ins,
                len(ins),
                outs,
                len(outs),
                user_memory,
                user_store_mode,
            )
        self.synchronise()
        return time.perf_counter() - begin

    def close(self) -> None:
        """Give all memory back and close the device."""
        for memory in list(self._memory.values()):
            self.free(memory)
        self._call("bmrt_destroy", self._runtime)
        self._call("bm_dev_free", self._handle)


class Launch(NamedTuple):
    """A net with its inputs and outputs, ready to be launched again and again."""

    net: bytes
    inputs: Any
    outputs: Any


class _LoadedNet:
    """Inputs and outputs of a net, as the library gave them."""

    def __init__(self, info: NetInfo) -> None:
        stage = info.stages[0]
        names, dtypes, shapes, sizes = info.input_names, info.input_dtypes, stage.input_shapes, info.max_input_bytes
        self.inputs = [_Port(names[i], dtypes[i], shapes[i], sizes[i]) for i in range(info.input_num)]
        names, dtypes, shapes, sizes = info.output_names, info.output_dtypes, stage.output_shapes, info.max_output_bytes
        self.outputs = [_Port(names[i], dtypes[i], shapes[i], sizes[i]) for i in range(info.output_num)]
        self.is_dynamic = bool(info.is_dynamic)
        self.stages = int(info.stage_num)
        self.addr_mode = int(info.addr_mode)

    def describe(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "is_dynamic": self.is_dynamic,
            "stages": self.stages,
            "addr_mode": self.addr_mode,
            "inputs": [port.describe() for port in self.inputs],
            "outputs": [port.describe() for port in self.outputs],
        }

    def tensors(self, ports: Sequence[_Port], memory: Sequence[DeviceMem]) -> Any:
        if len(ports) != len(memory):
            raise RuntimeFault(f"expected {len(ports)} pieces of memory, got {len(memory)}")
        tensors = (Tensor * len(ports))()
        for i, port in enumerate(ports):
            if port.size_bytes != memory[i].size:
                raise RuntimeFault(f"{port.name} takes {port.size_bytes} bytes, got a piece of {memory[i].size}")
            tensors[i] = Tensor(port.dtype, port.shape, memory[i], 0)
        return tensors


class _Port:
    """One input or output of a net."""

    def __init__(self, name: bytes, dtype: int, shape: Shape, size_bytes: int) -> None:
        self.name = name.decode()
        self.dtype = dtype
        self.shape = Shape(shape.num_dims, shape.dims)
        self.size_bytes = size_bytes

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape.dims[: self.shape.num_dims]),
            "bytes": self.size_bytes,
        }


def _check_overlap(net: str, inputs: Sequence[DeviceMem], outputs: Sequence[DeviceMem], addr_mode: int) -> None:
    """Two outputs must never share memory; an input and an output may where the net works on copies of both."""
    spans = sorted((piece.device_addr, piece.device_addr + piece.size) for piece in outputs)
    for i, (start, _) in enumerate(spans):
        if i and start < spans[i - 1][1]:
            raise RuntimeFault(f"two outputs of {net} share the device memory at {start:#x}")
    if addr_mode == _BASIC:
        return
    starts = [start for start, _ in spans]
    for piece in inputs:
        before = bisect.bisect_left(starts, piece.device_addr + piece.size)
        if before and spans[before - 1][1] > piece.device_addr:
            raise RuntimeFault(
                f"an input and an output of {net} share the device memory at {piece.device_addr:#x}, which its "
                f"addressing mode {addr_mode} does not allow; only mode {_BASIC} does"
            )


def _find(folder: Path, names: Sequence[str]) -> Path:
    paths = [folder / name for name in names]
    for path in paths:
        if path.is_file():
            return path
    raise LibraryMissing(f"not found: {' nor '.join(map(str, paths))}. It is part of libsophon")
