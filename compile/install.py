"""Install one TPU-MLIR release: a fresh environment, pinned packages, a glibc that fits, a proof, a receipt."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import socket
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import msgspec

from compile.process import run, tail
from compile.python310 import Python310Error, find_python310
from compile.toolchain import (
    RECEIPT,
    Receipt,
    Toolchain,
    ToolchainError,
    clean_environment,
    host_glibc,
    look_up,
    prove,
    toolchains_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PINS = Path(__file__).with_name("toolchain_pins.txt")

_NEEDED_BYTES = 6_500_000_000  # 3.6 GB stay, 1.4 GB of wheels pass through, and pip may cache as much again
_PIP_TIMEOUT_S = 6 * 3600  # a slow line is no error, and on a dead one pip itself gives up

_WHEEL = re.compile(r"tpu_mlir-(?P<version>[^-]+)(-[^-]+)?-[^-]+-[^-]+-[^-]+\.whl")
_COMMIT = re.compile(r"v\S+-g[0-9a-f]+-[0-9]{8}")

# Ubuntu 22.04's own, which the release puts in front of the host's: on another glibc, all that it starts dies.
_GLIBC_FILES = ("libc.so.6", "libm.so.6", "libpthread.so.0")
_GLIBC_BANNER = re.compile(rb"GNU C Library [^\n]{0,100}? version (\d+\.\d+)")

# What pip says, and what its user can do about it; the first that fits is told.
_REMEDIES = (
    (r"No space left on device|Disk quota exceeded", "Make room, or choose another cache folder."),
    (
        r"Retrying|from versions: none",
        "The package index seems out of reach: check network and proxy, or give a wheel file that is already here.",
    ),
    (r"No matching distribution found for tpu_mlir", "Choose one of the releases that pip lists above."),
    (r"is invalid|not a supported wheel|BadZipFile", "The wheel is broken or for another system: fetch it anew."),
    (r"ResolutionImpossible", "The release asks for other packages than are pinned: install it with other pins."),
    (r"gcc|Failed building wheel", "A dependency is built from source: install a C compiler (apt-get install gcc)."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What to install, from where, to where."""

    version: str
    home: Path
    wheel: Path | None
    say: Callable[[str], None]
    pins: Path
    pip_args: Sequence[str]

    @property
    def log(self) -> Path:
        """All that the tools said; it stays after a failure too."""
        return self.home / f"{self.version}.log"


def install(
    version: str,
    cache: Path,
    *,
    wheel: Path | None = None,
    say: Callable[[str], None],
    pins: Path = PINS,
    pip_args: Sequence[str] = (),
) -> Toolchain:
    """Install and prove one release under the cache folder, or return the one already proven there.

    It may be interrupted anywhere. A second installer of the same release waits, and then finds it done.

    Args:
        version: the release, as in ``1.30.2``.
        cache: the folder that keeps all toolchains; a release takes 3.6 GB there.
        wheel: a wheel file of that release, to install in place of the published one.
        say: takes one line of progress at a time.
        pins: pip constraints for what the release leaves open.
        pip_args: more options for pip, such as ``--index-url=URL``; paths in them absolute.

    Raises:
        ToolchainError: it cannot be installed or does not compile. Nothing half-made is left behind.
    """
    if (done := look_up(version, cache)) is not None:
        return _of_wheel(done, wheel)
    if wheel is not None:
        _check_name(wheel, version)
    if platform.machine() != "x86_64":
        raise ToolchainError(f"TPU-MLIR's programs need an x86_64 host, but this is {platform.machine()}")
    home = toolchains_folder(cache)
    order = _Order(version=version, home=home, wheel=wheel, say=say, pins=pins.absolute(), pip_args=pip_args)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _sole_installer(order):
            if (done := look_up(version, cache)) is not None:
                return _of_wheel(done, wheel)
            return _install(order)
    except (OSError, Python310Error) as error:
        raise ToolchainError(f"tpu_mlir {version} cannot be installed in {home}: {error}") from error


def _check_name(wheel: Path, version: str) -> None:
    if not wheel.is_file():
        raise ToolchainError(f"there is no wheel file {wheel}")
    named = _WHEEL.fullmatch(wheel.name)
    if named is None or named["version"] != version:
        raise ToolchainError(f"expected a wheel of this release, tpu_mlir-{version}-….whl, but got {wheel.name}")


def _of_wheel(toolchain: Toolchain, wheel: Path | None) -> Toolchain:
    if wheel is not None and _sha256(wheel) != toolchain.wheel_sha256:
        raise ToolchainError(
            f"tpu_mlir {toolchain.version} is installed already, but from another wheel than {wheel} "
            f"(sha256 {toolchain.wheel_sha256})\nTo replace it, first remove {toolchain.root}"
        )
    return toolchain


@contextmanager
def _sole_installer(order: _Order) -> Iterator[None]:
    """Hold this release's lock, which the kernel takes from a holder that dies."""
    lock = filelock.FileLock(order.home / f".{order.version}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        with suppress(FileNotFoundError):
            holder = order.log.read_text(errors="replace").splitlines()[:1]
            order.say(f"waiting for the {''.join(holder)}; it writes {order.log}")
        lock.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        lock.release()


def _install(order: _Order) -> Toolchain:
    order.log.write_text(
        f"install of tpu_mlir {order.version} by process {os.getpid()} on {socket.gethostname()}, {time.ctime()}\n"
    )
    for leftover in order.home.glob(f"{order.version}-*"):
        order.say(f"removing {leftover}, which was left half-made")
        shutil.rmtree(leftover, ignore_errors=True)
    free = shutil.disk_usage(order.home).free
    if free < _NEEDED_BYTES:
        raise ToolchainError(
            f"an install needs {_NEEDED_BYTES / 1e9:.1f} GB, but {order.home} has {free / 1e9:.1f} GB free\n"
            "Make room, or choose another cache folder."
        )
    # An environment's scripts hold its path, so it is built where it stays instead of renamed at the end: the receipt,
    # written last, makes it count. The name is new each time, out of reach of what a killed install left running.
    folder = order.home / f"{order.version}-{secrets.token_hex(4)}"
    try:
        return _build(order, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _build(order: _Order, folder: Path) -> Toolchain:
    start = time.monotonic()

    def say(text: str) -> None:
        order.say(f"{time.monotonic() - start:5.1f} s  {text}")

    def python(interpreter: Path, module: str, *arguments: str, **variables: str) -> None:
        done = run(
            [str(interpreter), "-I", "-m", module, *arguments],
            folder=order.home,
            log=order.log,
            environment=clean_environment() | variables,
            timeout_s=_PIP_TIMEOUT_S,
            on_line=lambda line: _relay(line, say),
        )
        if done.status != 0:
            raise _failure(order, f"{module} {done.ending}")

    base = find_python310()
    say(f"making an environment from {base}")
    python(base, "venv", str(folder))

    scratch = folder / "scratch"  # for pip's own temporary files too: the space looked at is the space used
    scratch.mkdir()

    def pip(*arguments: str) -> None:
        command = [*arguments, *order.pip_args, "--no-input", "--progress-bar=off", "--disable-pip-version-check"]
        python(folder / "bin" / "python", "pip", *command, TMPDIR=str(scratch))

    wheel = order.wheel
    if wheel is None:
        pip("download", "--no-deps", "--only-binary=:all:", f"--dest={scratch}", f"tpu_mlir=={order.version}")
        wheel = next(scratch.glob("*.whl"))
    digest = _sha256(wheel)
    # Of 3.6 GB little is ever imported, and Python compiles that as it comes: the environment of these tools is clean,
    # so that no PYTHONDONTWRITEBYTECODE has it done again each time.
    packages = (f"{wheel.absolute()}[onnx]", "psutil", "setuptools", "torch")
    pip("install", "--no-compile", f"--constraint={order.pins}", *packages)
    shutil.rmtree(scratch)

    toolchain = Toolchain(folder, _receipt(order.version, folder, digest))
    for file, aside in toolchain.moved_files.items():
        say(f"moving {file.name} aside: of glibc {toolchain.receipt.bundled_glibc}, here is {host_glibc()}")
        aside.parent.mkdir(exist_ok=True)
        file.rename(aside)
    _make_executable(toolchain)
    say("proving that it compiles")
    prove(toolchain)

    partial = folder / f"{RECEIPT}.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(toolchain.receipt), indent=2) + b"\n")
    partial.replace(folder / RECEIPT)
    say(f"installed {toolchain.compiler_commit} in {folder}")
    return toolchain


def _relay(line: str, say: Callable[[str], None]) -> None:
    """Pass on those lines of pip's that show how far it is."""
    if line.startswith("Installing collected packages:"):
        say(f"Installing {line.count(',') + 1} packages")
    elif line.lstrip().startswith(
        ("Collecting ", "Processing ", "Downloading ", "Building wheel", "WARNING: Retrying")
    ):
        say(line.strip())


def _failure(order: _Order, what: str) -> ToolchainError:
    said = tail(order.log)
    remedy = next((f"{remedy}\n" for sign, remedy in _REMEDIES if re.search(sign, said)), "")
    return ToolchainError(
        f"tpu_mlir {order.version} cannot be installed: {what}; the last lines:\n{said}\n{remedy}All of it: {order.log}"
    )


def _receipt(version: str, folder: Path, wheel_sha256: str) -> Receipt:
    site_packages = folder / "lib" / "python3.10" / "site-packages"
    third_party = site_packages / "tpu_mlir" / "lib" / "third_party"
    packages = {re.sub(r"[-_.]+", "-", found.name).lower(): found for found in distributions(path=[str(site_packages)])}
    del packages["pip"]  # another one on each host, and without a part in compiling
    bundled = _bundled_glibc(third_party / "libc.so.6")
    return Receipt(
        version=version,
        wheel_sha256=wheel_sha256,
        compiler_commit=_commit(packages.pop("tpu-mlir")),
        pins=tuple(sorted(f"{name}=={found.version}" for name, found in packages.items())),
        bundled_glibc=bundled,
        host_glibc=host_glibc(),
        glibc_moved=tuple(name for name in _GLIBC_FILES if bundled != host_glibc() and (third_party / name).is_file()),
        installed_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def _commit(package: Distribution) -> str:
    summary = package.metadata["Summary"]
    found = _COMMIT.search(summary)
    return found[0] if found else summary


def _bundled_glibc(library: Path) -> str | None:
    if not library.is_file():
        return None
    banner = _GLIBC_BANNER.search(library.read_bytes())
    return banner[1].decode() if banner else "unknown"


def _make_executable(toolchain: Toolchain) -> None:
    """Do now what the package otherwise does when first imported, where two first compiles would race."""
    for file in [*toolchain.package.glob("python/tools/*"), *toolchain.package.glob("bin/*")]:
        if file.is_file():
            file.chmod(file.stat().st_mode | 0o111)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
