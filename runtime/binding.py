"""The C interface of libbmlib and libbmrt. Runs on Python 3.8, imports nothing beyond the standard library.

Structures and constants keep the vendor's names where those are on record in its headers: bmlib_runtime.h (bmlib),
bmdef.h and bmruntime_interface.h (bmrt).
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_ulong, c_void_p
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from runtime.faults import DeviceError, FunctionMissing, LibraryMissing, OutOfDeviceMemory

if TYPE_CHECKING:
    from pathlib import Path

MAX_DIMS = 8


class Status(IntEnum):
    """bm_status_t: what the functions of libbmlib return."""

    SUCCESS = 0
    NOT_READY = 1
    FAILURE = 2
    TIMEOUT = 3
    BAD_PARAMETER = 4
    NO_MEMORY = 5
    BAD_DATA = 6
    BUSY = 7
    NO_FEATURE = 8
    NOT_SUPPORTED = 9


class Dtype(IntEnum):
    """bm_data_type_t."""

    F32 = 0
    F16 = 1
    I8 = 2
    U8 = 3
    I16 = 4
    U16 = 5
    I32 = 6
    U32 = 7
    BF16 = 8
    I4 = 9
    U4 = 10


class DeviceMem(ctypes.Structure):
    """bm_device_mem_t: a piece of device memory, passed by value; below 4 GiB."""

    _fields_ = (
        ("device_addr", c_uint64),
        ("reserved", c_uint32),
        ("dmabuf_fd", c_int32),
        ("flags", c_uint32),
        ("size", c_uint32),
    )


class Shape(ctypes.Structure):
    """bm_shape_t."""

    _fields_ = (("num_dims", c_int), ("dims", c_int * MAX_DIMS))


class Tensor(ctypes.Structure):
    """bm_tensor_t: an array in device memory."""

    _fields_ = (("dtype", c_int), ("shape", Shape), ("device_mem", DeviceMem), ("st_mode", c_int))


class StageInfo(ctypes.Structure):
    """bm_stage_info_t: shapes and own memory of one stage of a net."""

    _fields_ = (
        ("input_shapes", POINTER(Shape)),
        ("output_shapes", POINTER(Shape)),
        ("input_mems", POINTER(DeviceMem)),
        ("output_mems", POINTER(DeviceMem)),
    )


class NetInfo(ctypes.Structure):
    """bm_net_info_t: all that the library tells about a loaded net."""

    _fields_ = (
        ("name", c_char_p),
        ("is_dynamic", c_bool),
        ("input_num", c_int),
        ("input_names", POINTER(c_char_p)),
        ("input_dtypes", POINTER(c_int)),
        ("input_scales", POINTER(c_float)),
        ("output_num", c_int),
        ("output_names", POINTER(c_char_p)),
        ("output_dtypes", POINTER(c_int)),
        ("output_scales", POINTER(c_float)),
        ("stage_num", c_int),
        ("stages", POINTER(StageInfo)),
        ("max_input_bytes", POINTER(c_size_t)),
        ("max_output_bytes", POINTER(c_size_t)),
        ("input_zero_point", POINTER(c_int)),
        ("output_zero_point", POINTER(c_int)),
        ("input_loc_devices", POINTER(c_int)),
        ("output_loc_devices", POINTER(c_int)),
        ("core_num", c_int),
        ("addr_mode", c_int32),
    )


class Profile(ctypes.Structure):
    """bm_profile_t: what the driver counted for the calling thread. Older drivers end before tpu1_process_time."""

    _fields_ = (
        ("cdma_in_time", c_ulong),
        ("cdma_in_counter", c_ulong),
        ("cdma_out_time", c_ulong),
        ("cdma_out_counter", c_ulong),
        ("tpu_process_time", c_ulong),  # microseconds
        ("tpu1_process_time", c_ulong),
        ("sent_api_counter", c_ulong),
        ("completed_api_counter", c_ulong),
    )


class HeapStat(ctypes.Structure):
    """bm_heap_stat: one heap of device memory."""

    _fields_ = (("mem_total", c_uint32), ("mem_avail", c_uint32), ("mem_used", c_uint32))


class DevStat(ctypes.Structure):
    """bm_dev_stat_t: the device's memory, in MiB, whoever uses it."""

    _fields_ = (
        ("mem_total", c_int),
        ("mem_used", c_int),
        ("tpu_util", c_int),
        ("heap_num", c_int),
        ("heap_stat", HeapStat * 4),
    )


_STATUS = c_int
_SUCCEEDED = c_bool
_HANDLE = c_void_p
_BMRT = c_void_p

# name: (result, arguments). A result of _STATUS or _SUCCEEDED is checked by every call.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bm_dev_getcount": (_STATUS, [POINTER(c_int)]),
    "bm_dev_request": (_STATUS, [POINTER(_HANDLE), c_int]),
    "bm_dev_free": (None, [_HANDLE]),
    "bm_malloc_device_byte": (_STATUS, [_HANDLE, POINTER(DeviceMem), c_uint32]),
    "bm_free_device": (None, [_HANDLE, DeviceMem]),
    "bm_memcpy_s2d": (_STATUS, [_HANDLE, DeviceMem, c_void_p]),
    "bm_memcpy_d2s": (_STATUS, [_HANDLE, c_void_p, DeviceMem]),
    "bm_memcpy_d2d_byte": (_STATUS, [_HANDLE, DeviceMem, c_size_t, DeviceMem, c_size_t, c_size_t]),
    "bm_thread_sync": (_STATUS, [_HANDLE]),
    "bm_get_chipid": (_STATUS, [_HANDLE, POINTER(c_uint32)]),
    "bm_get_driver_version": (_STATUS, [_HANDLE, POINTER(c_int)]),
    "bm_get_profile": (_STATUS, [_HANDLE, POINTER(Profile)]),
    "bm_get_stat": (_STATUS, [_HANDLE, POINTER(DevStat)]),
    "libbmlib_version": (c_char_p, []),
    "bmrt_create": (_BMRT, [_HANDLE]),
    "bmrt_destroy": (None, [_BMRT]),
    "bmrt_get_flags": (c_uint32, [_BMRT]),
    "bmrt_load_bmodel": (_SUCCEEDED, [_BMRT, c_char_p]),
    "bmrt_get_network_number": (c_uint32, [_BMRT]),
    "bmrt_get_network_names": (None, [_BMRT, POINTER(POINTER(c_char_p))]),
    "bmrt_get_network_info": (POINTER(NetInfo), [_BMRT, c_char_p]),
    "bmrt_launch_tensor_ex": (
        _SUCCEEDED,
        [_BMRT, c_char_p, POINTER(Tensor), c_int, POINTER(Tensor), c_int, c_bool, c_bool],
    ),
    "libbmrt_version": (c_char_p, []),
}

FUNCTIONS = tuple(_SIGNATURES)
"""All functions that are ever called; a library may lack some."""

_NEEDED_FOR = {
    "bm_get_chipid": "telling which chip is there",
    "bm_get_driver_version": "telling the driver's version",
    "bm_get_profile": "telling how long the chip has computed",
    "bm_get_stat": "telling how much device memory is in use",
    "bm_memcpy_d2d_byte": "forking a session without its state leaving the device",
    "bmrt_get_flags": "telling how the runtime is set (libsophon of April 2024 and later have it)",
    "libbmlib_version": "telling its version",
    "libbmrt_version": "telling its version",
}
"""What cannot be done without a function; without any other nothing can be run at all."""


def check(call: str, result: Any) -> Any:
    """Return *result* of the vendor function *call*, unless it says that the call failed.

    Raises:
        OutOfDeviceMemory: the status says so.
        DeviceError: any other failure.
    """
    signature = _SIGNATURES[call][0]
    if signature is _SUCCEEDED and not result:
        raise DeviceError(f"{call} failed: it returned false", call=call)
    if signature is _STATUS and result != Status.SUCCESS:
        known = result in Status.__members__.values()
        meaning = Status(result).name.lower().replace("_", " ") if known else "a status of unknown meaning"
        fault = f"{call} failed with status {result}: {meaning}"
        if result == Status.NO_MEMORY:
            raise OutOfDeviceMemory(fault)
        raise DeviceError(fault, call=call, status=result)
    return result


class Vendor:
    """Both libraries, loaded into this process for good."""

    def __init__(self, bmlib: Path, bmrt: Path) -> None:
        """Load *bmlib*, then *bmrt*, which finds the first by its name.

        Raises:
            LibraryMissing: a file is no library for this machine, or lacks another library it needs.
        """
        self.bmlib = bmlib
        self.bmrt = bmrt
        try:
            self._libraries = (ctypes.CDLL(str(bmlib), mode=ctypes.RTLD_GLOBAL), ctypes.CDLL(str(bmrt)))
        except OSError as error:
            raise LibraryMissing(f"{bmlib} and {bmrt} do not load: {error}") from error
        self._functions: dict[str, Any] = {}

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the vendor function *name* and check what it returns.

        A function is looked up when first called, so that a library without an optional one still serves.

        Raises:
            FunctionMissing: the library has no such function.
            DeviceError: it failed.
            OutOfDeviceMemory: it failed for lack of device memory.
        """
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._find(name)
        return check(name, function(*arguments))

    def version(self, name: str) -> str | None:
        """What the library says through *name*, libbmlib_version or libbmrt_version; None where it cannot tell."""
        try:
            said = self.call(name)
        except FunctionMissing:
            return None
        return said.decode(errors="replace").strip() if said else None

    def _find(self, name: str) -> Any:
        of_runtime = name.startswith(("bmrt_", "libbmrt_"))
        path = self.bmrt if of_runtime else self.bmlib
        try:
            function = getattr(self._libraries[of_runtime], name)
        except AttributeError as error:
            version_name = "libbmrt_version" if of_runtime else "libbmlib_version"
            version = None if name == version_name else self.version(version_name)
            raise FunctionMissing(
                f"{path.resolve()} ({version or 'of unknown version'}) has no {name}: this libsophon is older than "
                f"needed for {_NEEDED_FOR.get(name, 'running bmodels')}. Update libsophon",
                call=name,
            ) from error
        function.restype, function.argtypes = _SIGNATURES[name]
        return function
