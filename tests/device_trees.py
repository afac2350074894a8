"""File trees as a PCIe card's driver and an SoC board's Linux show them, written by hand: no board was at hand."""

PCIE = {
    "proc/bmsophon/driver_version": "release version:0.5.1   release date: 20240820-101010\n",
    "proc/bmsophon/card0/board_power": "24 W\n",
    "proc/bmsophon/card0/board_temp": "41 C\n",
    "proc/bmsophon/card0/tpu_maxclk": "1000 MHz\n",
    "proc/bmsophon/card0/bmsophon1/chip_temp": "52 C\n",
    "proc/bmsophon/card0/bmsophon1/tpu_freq": "800 MHz\n",
    "proc/bmsophon/card0/bmsophon1/tpu_power": "N/A\n",
    "proc/bmsophon/card0/bmsophon1/firmware_info": "a1b2c3d_2024-08-20\n",
    "proc/bmsophon/card0/bmsophon1/boot_loader_version": "BL1: v2.7\nBL2: v2.7\n",
    "proc/bmsophon/card0/bmsophon1/status": "active\n",
}
SOC = {
    "sys/class/thermal/thermal_zone0/temp": "47321\n",
    "sys/class/thermal/thermal_zone1/temp": "39000\n",
    "sys/class/bm-tpu/bm-tpu0/device/npu_usage": "usage:13 avusage:7\n",
    "sys/kernel/debug/ion/bm_npu_heap_dump/summary": (
        "Summary:\n[0] npu heap size:4141875200 bytes, used:1048576 bytes        usage rate:0%, memory usage peak\n"
    ),
}
TOOLS = {
    "usr/bin/bm_version": "#!/bin/sh\necho 'SophonSDK version: v24.04.01'\necho 'BL2 v2.7(release):1'\n",
    "opt/sophon/libsophon-current/bin/bm-smi": '#!/bin/sh\necho "1684X-SOC $1 800M"\n',
}
"""Commands of the vendor that only print."""
LIBRARIES = "opt/sophon/libsophon-current/lib"


def write_tree(root, files, nodes=(), *, libraries=True):
    """Write *files* below *root*, empty device nodes, and files named like libsophon's libraries."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if name in TOOLS else 0o644)
    for node in nodes:
        path = root / "dev" / node
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.chmod(0o600)
    if libraries:
        folder = root / LIBRARIES
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("libbmlib.so", "libbmrt.so"):
            (folder / name).write_bytes(b"\x7fELF, as it begins, and no more")
    return root
