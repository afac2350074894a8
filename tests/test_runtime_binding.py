"""The C interface: structures as the vendor's header has them, functions as its libraries have them."""

import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import binding
from runtime.binding import DeviceMem, DevStat, Dtype, NetInfo, Profile, Shape, StageInfo, Status, Tensor, check
from runtime.cmodel import linked_libraries
from runtime.faults import DeviceError, LibraryMissing, OutOfDeviceMemory, RuntimeFault

ROOT = Path(__file__).resolve().parent.parent

C_PROGRAM = """
#include <stddef.h>
#include <stdio.h>
#include "bmlib_runtime.h"
int main(void) {
    printf("{\\"size\\": %zu, \\"device_addr\\": %zu, \\"reserved\\": %zu, \\"dmabuf_fd\\": %zu, \\"flags\\": %zu, "
           "\\"size_at\\": %zu, \\"statuses\\": [%d, %d, %d, %d, %d, %d, %d, %d, %d, %d]}",
           sizeof(bm_device_mem_t), offsetof(bm_device_mem_t, u.device.device_addr),
           offsetof(bm_device_mem_t, u.device.reserved), offsetof(bm_device_mem_t, u.device.dmabuf_fd),
           offsetof(bm_device_mem_t, flags), offsetof(bm_device_mem_t, size),
           BM_SUCCESS, BM_ERR_DEVNOTREADY, BM_ERR_FAILURE, BM_ERR_TIMEOUT, BM_ERR_PARAM, BM_ERR_NOMEM, BM_ERR_DATA,
           BM_ERR_BUSY, BM_ERR_NOFEATURE, BM_NOT_SUPPORTED);
    return 0;
}
"""

C_NAMES = {
    DeviceMem: "bm_device_mem_t",
    Shape: "bm_shape_t",
    Tensor: "bm_tensor_t",
    StageInfo: "bm_stage_info_t",
    NetInfo: "bm_net_info_t",
    Profile: "bm_profile_t",
    DevStat: "bm_dev_stat_t",
}

EVERY_FUNCTION = """
import sys
from pathlib import Path
from runtime import binding
from runtime.cmodel import linked_libraries
with linked_libraries(Path(sys.argv[1])) as folder:
    vendor = binding.Vendor(folder / "libbmlib.so.0", folder / "libbmrt.so.1.0")
    for name in binding._SIGNATURES:
        vendor._find(name)
print(len(binding._SIGNATURES), flush=True)
"""


@pytest.mark.toolchain
def test_memory_and_statuses_are_as_in_the_header(toolchain, tmp_path):
    """A C program that includes the wheel's header prints the same sizes, offsets and values."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler named cc on the PATH")
    header = next(toolchain.libraries.parent.glob("cross_toolchains/**/bmlib/include/bmlib_runtime.h"))
    source, program = tmp_path / "sizes.c", tmp_path / "sizes"
    source.write_text(C_PROGRAM)
    subprocess.run([compiler, "-I", header.parent, source, "-o", program], check=True)
    found = json.loads(subprocess.run([program], check=True, capture_output=True).stdout)
    assert found == {
        "size": ctypes.sizeof(DeviceMem),
        "device_addr": DeviceMem.device_addr.offset,
        "reserved": DeviceMem.reserved.offset,
        "dmabuf_fd": DeviceMem.dmabuf_fd.offset,
        "flags": DeviceMem.flags.offset,
        "size_at": DeviceMem.size.offset,
        "statuses": list(Status),
    }


@pytest.mark.parametrize(
    ("structure", "size"),
    [(DeviceMem, 24), (Shape, 36), (Tensor, 72), (StageInfo, 32), (NetInfo, 144), (Profile, 64), (DevStat, 64)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_structures_have_their_sizes(structure, size):
    """Sizes on 64-bit Linux of the structures in the vendor's bmdef.h, which the wheel does not carry."""
    assert ctypes.sizeof(structure) == size


@pytest.mark.parametrize("structure", C_NAMES, ids=lambda s: s.__name__)
def test_fields_lie_where_a_c_compiler_puts_them(structure, tmp_path):
    """Offset of every field, against the declarations that the fake libraries are compiled with."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler named cc on the PATH")
    c_type = C_NAMES[structure]
    fields = [name for name, _ in structure._fields_]
    of_union = {"device_addr", "reserved", "dmabuf_fd"} if structure is DeviceMem else set()
    offsets = ", ".join(f"offsetof({c_type}, {'u.device.' if name in of_union else ''}{name})" for name in fields)
    source, program = tmp_path / "offsets.c", tmp_path / "offsets"
    source.write_text(
        '#include <stdio.h>\n#include "fake.h"\n'
        f"int main(void) {{ size_t offsets[] = {{{offsets}, sizeof({c_type})}};"
        f' for (int i = 0; i <= {len(fields)}; i++) printf("%zu\\n", offsets[i]); return 0; }}\n'
    )
    subprocess.run([compiler, "-I", ROOT / "tests" / "fake_libsophon", source, "-o", program], check=True)
    found = [int(line) for line in subprocess.run([program], check=True, capture_output=True).stdout.split()]
    assert found == [*(getattr(structure, name).offset for name in fields), ctypes.sizeof(structure)]


def test_float_types_have_their_numbers():
    """The numbers of bm_data_type_t that the contract of nets uses."""
    assert (Dtype.F32, Dtype.F16, Dtype.I32, Dtype.BF16) == (0, 1, 6, 8)


@pytest.mark.toolchain
def test_every_function_is_in_the_libraries(toolchain):
    """Each name we may call is exported; looked up in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", EVERY_FUNCTION, toolchain.libraries],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert run.stdout.split()[-1:] == [str(len(binding._SIGNATURES))], run.stderr


@pytest.mark.toolchain
@pytest.mark.parametrize("name", ["libbmlib.c", "libbmrt.c"])
def test_the_fake_has_the_vendors_signatures(toolchain, name):
    """Our stand-in compiles against the vendor's header, which declares the same functions."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler named cc on the PATH")
    header = next(toolchain.libraries.parent.glob("cross_toolchains/**/bmlib/include/bmlib_runtime.h"))
    source = ROOT / "tests" / "fake_libsophon" / name
    subprocess.run([compiler, "-DVENDOR_HEADER", "-fsyntax-only", "-I", header.parent, source], check=True)


def test_check_passes_success_on():
    """A status of 0, a true and an address come back as they are."""
    assert check("bm_thread_sync", 0) == 0
    assert check("bmrt_load_bmodel", True) is True
    assert check("bmrt_create", 4096) == 4096


@pytest.mark.parametrize("status", [s for s in Status if s not in {Status.SUCCESS, Status.NO_MEMORY}], ids=str)
def test_check_names_call_status_and_meaning(status):
    """An error says which call failed, with which number, and what that means."""
    with pytest.raises(DeviceError, match=rf"bm_thread_sync failed with status {status.value}: \w+") as caught:
        check("bm_thread_sync", status.value)
    assert (caught.value.call, caught.value.status) == ("bm_thread_sync", status)


def test_check_survives_an_unknown_status():
    """A newer library may return numbers that this one does not know."""
    with pytest.raises(DeviceError, match="status 77: a status of unknown meaning"):
        check("bm_thread_sync", 77)


def test_check_refuses_false():
    """The functions that return a truth value have no status to tell."""
    with pytest.raises(DeviceError, match="bmrt_launch_tensor_ex failed: it returned false") as caught:
        check("bmrt_launch_tensor_ex", False)
    assert caught.value.status is None


def test_lack_of_memory_is_a_fault_of_its_own():
    """The status for lack of memory is told apart from other failures."""
    with pytest.raises(OutOfDeviceMemory, match="bm_malloc_device_byte"):
        check("bm_malloc_device_byte", Status.NO_MEMORY)
    assert issubclass(OutOfDeviceMemory, RuntimeFault)


def test_names_in_the_wheels(tmp_path):
    """The chip's own name goes before the plain one, which older wheels have alone; with neither it is told."""
    names = ("libbmlib.so.0", "libbmlib_bm1684x.so.0", "libbmrt.so.1.0", "libcmodel_bm1684x.so")
    for name in names:
        (tmp_path / name).write_text(name)
    with linked_libraries(tmp_path) as links:
        assert (links / "libbmlib.so.0").read_text() == "libbmlib_bm1684x.so.0"
    (tmp_path / "libbmlib_bm1684x.so.0").unlink()
    with linked_libraries(tmp_path) as links:
        assert (links / "libbmlib.so.0").read_text() == "libbmlib.so.0"
        assert (links / "libcmodel.so").read_text() == "libcmodel_bm1684x.so"
    assert not links.exists()
    (tmp_path / "libcmodel_bm1684x.so").rename(tmp_path / "libcmodel_1684x.so")
    with linked_libraries(tmp_path) as links:
        assert (links / "libcmodel.so").resolve().name == "libcmodel_1684x.so"
    (tmp_path / "libbmlib.so.0").unlink()
    with pytest.raises(LibraryMissing, match=r"libbmlib_bm1684x\.so\.0"), linked_libraries(tmp_path):
        pass
