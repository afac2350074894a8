"""What a toolchain is: one TPU-MLIR release in a CPython 3.10 environment of its own. Found, proven, checked here.

It is addressed by path and never imported into this process. ``compile.install`` makes one.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import platform
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from compile.process import run, tail

if TYPE_CHECKING:
    from collections.abc import Iterator

RECEIPT = "toolchain.json"
_RUNNER = Path(__file__).with_name("tool_runner.py")

_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?(\.dev[0-9]+)?(\+[a-z0-9]+(\.[a-z0-9]+)*)?")

# What a shell set up for another interpreter, another release or a board would leak into the compiler.
_FOREIGN = re.compile(r"(PYTHON|LD_|TPU|PPL_|CMODEL|BMRUNTIME|LGHASH|CUSTOM_LAYER|CHIP|USING_|OMP_|PROJECT_ROOT).*")

_PROOF_TIMEOUT_S = 300
_PROOF_MODEL = """
from onnx import TensorProto, helper, save
x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 16])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 32])
w = helper.make_tensor("w", TensorProto.FLOAT, [16, 32], [i / 512 for i in range(512)])
b = helper.make_tensor("b", TensorProto.FLOAT, [32], [i / 32 for i in range(32)])
nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["y"])]
graph = helper.make_graph(nodes, "tiny", [x], [y], [w, b])
save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), "tiny.onnx")
"""


class ToolchainError(RuntimeError):
    """A toolchain cannot be found, installed or proven; the message says what to do."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What was installed: the contents of ``toolchain.json``, which is written last and so stands for "proven"."""

    version: str
    wheel_sha256: str
    compiler_commit: str
    pins: tuple[str, ...]
    bundled_glibc: str | None  # None: the release brings none
    host_glibc: str
    glibc_moved: tuple[str, ...]  # files in lib/third_party that were moved aside
    installed_at: str


@dataclass(frozen=True, slots=True)
class Toolchain:
    """One proven TPU-MLIR release; *root* is the folder of its Python environment."""

    root: Path
    receipt: Receipt

    @property
    def version(self) -> str:
        """The release, as in ``1.30.2``."""
        return self.receipt.version

    @property
    def wheel_sha256(self) -> str:
        """SHA-256 of the wheel file itself, in hexadecimal: taken before pip unpacked it."""
        return self.receipt.wheel_sha256

    @property
    def compiler_commit(self) -> str:
        """Release, source commit and build date, as in ``v1.30.2-gecc9dd6-20260831``."""
        return self.receipt.compiler_commit

    @property
    def pins(self) -> tuple[str, ...]:
        """All other packages of the environment except pip, sorted, as ``name==version``."""
        return self.receipt.pins

    @property
    def identity(self) -> str:
        """A short text for cache keys: another one whenever wheel, packages or our moving of glibc differ."""
        parts = "\n".join([self.wheel_sha256, *self.pins, "glibc moved:", *self.receipt.glibc_moved])
        return f"tpu_mlir-{self.version}-{hashlib.sha256(parts.encode()).hexdigest()[:16]}"

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.root / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """The folder of the environment's packages."""
        return self.root / "lib" / "python3.10" / "site-packages"

    @property
    def package(self) -> Path:
        """The folder of the ``tpu_mlir`` package."""
        return self.site_packages / "tpu_mlir"

    @property
    def libraries(self) -> Path:
        """The folder of the package's shared libraries: cmodel, runtime, backends."""
        return self.package / "lib"

    @property
    def moved_files(self) -> dict[Path, Path]:
        """The release's files that are kept elsewhere than it put them: from where, to where."""
        third_party = self.libraries / "third_party"
        return {third_party / name: third_party / "moved-aside" / name for name in self.receipt.glibc_moved}

    def environment(self) -> dict[str, str]:
        """Return all environment variables for this toolchain's processes, free of what others are set up for."""
        clean = clean_environment()
        return clean | {
            "PATH": os.pathsep.join([str(self.root / "bin"), clean.get("PATH", os.defpath)]),
            "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
            "PYTHONHASHSEED": "0",  # the compiler is partly Python, and a compile has to be repeatable
        }

    def command(self, tool: str) -> list[str]:
        """Return the start of the command line of a tool, such as ``model_deploy`` or ``model_tool``.

        This starts the tool's own file, by way of ``tool_runner.py``. The release's console scripts start that in a
        second process, put the libpython of Ubuntu 22.04 under it, and turn each way to fail, a signal included, into
        exit status 1.

        Raises:
            ToolchainError: the release has no such tool.
        """
        scripts = {
            file.stem: [str(self.python), str(_RUNNER), str(file)] for file in self.package.glob("python/tools/*.py")
        }
        programs = {file.name: [str(file)] for file in self.package.glob("bin/*")}
        tools = programs | scripts
        if tool not in tools:
            raise ToolchainError(f"tpu_mlir {self.version} has no tool {tool!r}, only {', '.join(sorted(tools))}")
        return tools[tool]


@dataclass(frozen=True, slots=True)
class HalfMade:
    """A folder without a receipt that can be read: an install is at work there, or was killed."""

    root: Path
    version: str
    reason: str


def toolchains_folder(cache: Path) -> Path:
    """Return the folder of all toolchains under a cache folder: one folder each, named after the version."""
    return cache.absolute() / "toolchains"


def installed(cache: Path) -> list[Toolchain | HalfMade]:
    """Return all toolchains under the cache folder, half-made ones included, in the order of their versions."""
    found = [_load(folder) for folder in toolchains_folder(cache).glob("*-*") if folder.is_dir()]
    return sorted(found, key=lambda one: ([int(number) for number in re.findall("[0-9]+", one.version)], one.root))


def find(version: str, cache: Path) -> Toolchain:
    """Return the toolchain of one release under the cache folder.

    Raises:
        ToolchainError: it is not there.
    """
    if (found := look_up(version, cache)) is not None:
        return found
    present = [one.version for one in installed(cache) if isinstance(one, Toolchain)]
    raise ToolchainError(
        f"tpu_mlir {version} is not installed in {toolchains_folder(cache)} (there: {', '.join(present) or 'none'})\n"
        f"Install it with: rwkv-tpu toolchain install {version}"
    )


def look_up(version: str, cache: Path) -> Toolchain | None:
    """Return the toolchain of one release under the cache folder, if there is one.

    Raises:
        ToolchainError: *version* is not written like a version.
    """
    if _VERSION.fullmatch(version) is None:
        raise ToolchainError(f"{version!r} is no version of tpu_mlir; expected one like 1.30.2")
    found = [_load(folder) for folder in sorted(toolchains_folder(cache).glob(f"{version}-*"))]
    return next((one for one in found if isinstance(one, Toolchain) and one.version == version), None)


def prove(toolchain: Toolchain) -> None:
    """Compile a model of two operators for the BM1684X, which takes a few seconds.

    Raises:
        ToolchainError: a step failed, or left no bmodel or no instruction timeline.
    """
    transform = toolchain.command("model_transform")
    transform += ["--model_name", "tiny", "--model_def", "tiny.onnx", "--mlir", "tiny.mlir"]
    deploy = toolchain.command("model_deploy")
    deploy += ["--mlir", "tiny.mlir", "--chip", "bm1684x", "--quantize", "F16", "--model", "tiny.bmodel"]
    steps = (
        ([str(toolchain.python), "-I", "-c", _PROOF_MODEL], ["tiny.onnx"]),
        (transform, ["tiny.mlir"]),
        (deploy, ["tiny.bmodel", "*compiler_profile_0.txt"]),  # older releases put the bmodel's name before it
    )
    with tempfile.TemporaryDirectory(prefix="rwkv-tpu-proof-") as name:
        folder = Path(name)
        log = folder / "log"
        environment = toolchain.environment()
        for command, products in steps:
            done = run(command, folder=folder, log=log, environment=environment, timeout_s=_PROOF_TIMEOUT_S)
            missing = [product.lstrip("*") for product in products if not any(map(_has_content, folder.glob(product)))]
            if done.status != 0 or missing:
                raise ToolchainError(
                    f"tpu_mlir {toolchain.version} in {toolchain.root} does not compile a model of two operators: the "
                    f"step that makes {' and '.join(products)} {done.ending}"
                    f"{f' and left no {missing[0]}' if missing else ''}; its last lines:\n{tail(log)}"
                )


def check(toolchain: Toolchain) -> list[str]:
    """Return what is wrong with a toolchain, nothing if it is sound: files changed since, or a failing proof."""
    problems = list(_damage(toolchain))
    receipt = toolchain.receipt
    if receipt.bundled_glibc and not receipt.glibc_moved and receipt.bundled_glibc != host_glibc():
        problems.append(f"it runs on its own glibc {receipt.bundled_glibc}, but the host now has {host_glibc()}")
    try:
        prove(toolchain)
    except ToolchainError as error:
        problems.append(str(error))
    return problems


def clean_environment() -> dict[str, str]:
    """Return this process's environment variables without those that steer interpreters, linkers and compilers."""
    return {name: value for name, value in os.environ.items() if _FOREIGN.fullmatch(name) is None}


def host_glibc() -> str:
    """Return the version of the C library that this process runs on, as in ``2.36``; empty if it is not glibc."""
    return platform.libc_ver()[1]


def _load(folder: Path) -> Toolchain | HalfMade:
    version = folder.name.rpartition("-")[0]
    try:
        receipt = msgspec.json.decode((folder / RECEIPT).read_bytes(), type=Receipt)
    except FileNotFoundError:
        return HalfMade(folder, version, "half-made: an install is at work, or was killed")
    except (OSError, msgspec.DecodeError) as error:
        return HalfMade(folder, version, f"half-made: {RECEIPT} cannot be read: {error}")
    return Toolchain(folder, receipt)


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _damage(toolchain: Toolchain) -> Iterator[str]:
    """Compare the release's files with the sizes and hashes that its wheel recorded."""
    moved = toolchain.moved_files
    for record in toolchain.site_packages.glob("tpu_mlir-*.dist-info/RECORD"):
        with record.open(newline="") as rows:
            for name, digest, size in csv.reader(rows):
                path = Path(os.path.normpath(toolchain.site_packages / name))
                path = moved.get(path, path)
                if not digest:  # compiled after installation, and free to change
                    continue
                if not path.is_file():
                    yield f"missing: {path}"
                elif path.stat().st_size != int(size) or digest != f"sha256={_record_digest(path)}":
                    yield f"changed since its installation: {path}"


def _record_digest(path: Path) -> str:
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
