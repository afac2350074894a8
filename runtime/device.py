"""One open device: loaded bmodels, pieces of its memory, launches. Runs on Python 3.8, in the worker only.

Everything happens on one thread, because the driver's synchronisation counts the calls of the calling thread alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import time
from typing import TYPE_CHECKING, Any

from runtime import cmodel
from runtime.binding import DeviceMem, NetInfo, Shape, Tensor, Vendor
from runtime.faults import BadBmodel, DeviceError, LibraryMissing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LIBRARY_NAMES = (("libbmlib.so.0", "libbmlib.so"), ("libbmrt.so.1.0", "libbmrt.so"))


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
        chip = ctypes.c_uint32()
        self._call("bm_get_chipid", self._handle, ctypes.byref(chip))
        driver = ctypes.c_int()
        try:
            self._call("bm_get_driver_version", self._handle, ctypes.byref(driver))
            driver_version = driver.value
        except DeviceError:  # the simulator has no driver
            driver_version = None
        return {
            "libbmlib": self._call("libbmlib_version").decode(),
            "libbmrt": self._call("libbmrt_version").decode(),
            "libraries": [
                {"path": str(path.resolve()), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                for path in self._files
            ],
            "chip_id": chip.value,
            "driver": driver_version,
            "runtime_flags": self._call("bmrt_get_flags", self._runtime),
        }

    def load(self, bmodel: Path) -> list[dict[str, Any]]:
        """Load *bmodel* beside those already there; describe its nets as JSON values.

        Raises:
            BadBmodel: the library refuses it, or a net's name is taken.
        """
        number = self._call("bmrt_get_network_number", self._runtime)
        try:
            self._call("bmrt_load_bmodel", self._runtime, str(bmodel).encode())
        except DeviceError as error:
            raise BadBmodel(f"{bmodel} was refused by the library: {error}") from error
        names = self._names()
        new = [name for name in names if name not in self._nets]
        if not new or number + len(new) != len(names):
            raise BadBmodel(f"{bmodel} holds no net with a new name; nets are now {names}. Compile it under another")
        for name in new:
            info = self._call("bmrt_get_network_info", self._runtime, name.encode()).contents
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

    def write(self, memory: DeviceMem, data: bytes) -> None:
        """Copy *data* to all of *memory*."""
        if len(data) != memory.size:
            raise ValueError(f"expected {memory.size} bytes for a piece of device memory, got {len(data)}")
        self._call("bm_memcpy_s2d", self._handle, memory, data)

    def read(self, memory: DeviceMem) -> bytearray:
        """Copy all of *memory* to the host. Nothing may be running: `launch` has synchronised."""
        data = bytearray(memory.size)
        self._call("bm_memcpy_d2s", self._handle, (ctypes.c_char * len(data)).from_buffer(data), memory)
        return data

    def launch(self, net: str, inputs: Sequence[DeviceMem], outputs: Sequence[DeviceMem]) -> float:
        """Run *net* from *inputs* to *outputs* and wait for it.

        Returns:
            Seconds of wall time of launch and synchronisation.
        """
        loaded = self._nets[net]
        ins = loaded.tensors(loaded.inputs, inputs)
        outs = loaded.tensors(loaded.outputs, outputs)
        user_memory, user_store_mode = True, False
        begin = time.perf_counter()
        self._call(
            "bmrt_launch_tensor_ex",
            self._runtime,
            net.encode(),
            ins,
            len(ins),
            outs,
            len(outs),
            user_memory,
            user_store_mode,
        )
        self._call("bm_thread_sync", self._handle)
        return time.perf_counter() - begin

    def close(self) -> None:
        """Give all memory back and close the device."""
        for memory in list(self._memory.values()):
            self.free(memory)
        self._call("bmrt_destroy", self._runtime)
        self._call("bm_dev_free", self._handle)


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
            raise ValueError(f"expected {len(ports)} pieces of memory, got {len(memory)}")
        tensors = (Tensor * len(ports))()
        for i, port in enumerate(ports):
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


def _find(folder: Path, names: Sequence[str]) -> Path:
    paths = [folder / name for name in names]
    for path in paths:
        if path.is_file():
            return path
    raise LibraryMissing(f"not found: {' nor '.join(map(str, paths))}. It is part of libsophon")
