"""A compile in a cache, and a toolchain whose code generator says what it is told to say."""

import hashlib
import sys
from pathlib import Path

import msgspec

from compile.compiler import Compiled
from compile.profile import Profile
from compile.toolchain import Toolchain
from tests.fake_toolchain import fake_toolchain

MLIR = """
module @m attributes {module.weight_file = "weights.npz"} {
  %0 = "top.Weight"() {path = "a"} : () -> tensor<257x128xf16, 4294967296 : i64> loc(#loc8)
  %1 = "top.Weight"() : () -> tensor<4xui8> loc("inline")
}
#loc8 = loc("emb_f16")
"""
PROFILE = """API_END total_cycle:{predicted_cycles}|b:{tiu_instructions}|g:{gdma_instructions}
GDMA SUMMARY : |dr[0] S2L:{ddr_read_bytes}|dr[1] L2S:{ddr_write_bytes}|dr[2] S2S:{ddr_copy_bytes}|dr[3] L2L:0
flops: {flops}, runtime: 0.1ms
"""


def a_profile(**changes: int) -> Profile:
    """Return totals, the usual ones but for *changes*."""
    usual = dict.fromkeys(Profile.__struct_fields__, 10) | {"predicted_cycles": 1000}
    return Profile(**(usual | changes))


def a_compile(cache: Path, name: str, profile: Profile, mlir: str = MLIR) -> str:
    """Put a finished compile into *cache*; return its bmodel's SHA-256."""
    folder = cache / "bmodels" / name
    folder.mkdir(parents=True)
    (folder / "m_final.mlir").write_text(mlir)
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    told = {"key": name, "bmodel_sha256": sha256, "bmodel_bytes": 1, "profile": profile, "costs": {}}
    result = Compiled(**told, toolchain="1.0", f32_operations=())
    (folder / "result.json").write_bytes(msgspec.json.encode(result))
    return sha256


def codegen_toolchain(folder: Path, version: str, said: Profile | str, options: str = "") -> Toolchain:
    """Make a toolchain whose code generator writes a profile or runs lines of a shell."""
    toolchain = fake_toolchain(folder, version, options)
    if isinstance(said, Profile):
        said = f"cat > compiler_profile_0.txt <<END\n{PROFILE.format(**msgspec.structs.asdict(said))}END"
    toolchain.python.unlink()
    toolchain.python.write_text(
        f'#!/bin/sh\nif [ "$1" != -c ]; then exec {sys.executable} "$@"; fi\ntest -s weights.npz || exit 9\n{said}\n'
    )
    toolchain.python.chmod(0o755)
    return toolchain
