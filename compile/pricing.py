"""The price that one release's estimator puts on another release's code.

The last stage of a compile makes instructions, and estimates their cycles, from the final MLIR, in which all else is
decided: order, addresses, tiles. Where release B makes the same instructions of release A's final MLIR as A did, its
cycles are B's price of A's code. Nothing runs on the chip or its simulator; it takes about a second.

The weights, which a finished compile does not keep, are stood in for by zeros of the same types and shapes: the
timeline is the same to the last character, for the instructions depend on where weights lie and not on what they are.
"""

from __future__ import annotations

import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from compile.compiler import Compiled
from compile.process import run, tail
from compile.profile import ProfileError, read_profile
from compile.timeline import FINAL_MLIR, PROFILE

if TYPE_CHECKING:
    from compile.profile import Profile
    from compile.toolchain import Toolchain

TIMEOUT_S = 600.0
_RESULT = "result.json"

# The package sets up what its programs need; after that it has no part any more.
_TPUC_OPT = 'import os, sys, tpu_mlir; os.execvp("tpuc-opt", ["tpuc-opt", *sys.argv[1:]])'

_WEIGHT_FILE = re.compile(r'module\.weight_file = "([^"/]+)"')
_WEIGHT = re.compile(r'= "top\.Weight"\(')
_TENSOR = re.compile(
    r'= "top\.Weight"\(\).*: \(\) -> tensor<(?P<shape>(?:\d+x)*)(?P<type>\w+)[,>].* loc\((?P<at>[^)]*)\)'
)
_LOCATION = re.compile(r'^(#loc\d*) = loc\("([^"]*)"\)', re.MULTILINE)
_TYPES = {"f32": np.float32, "f16": np.uint16, "bf16": np.uint16, "si32": np.int32, "ui32": np.uint32}
_TYPES |= {"si16": np.int16, "ui16": np.uint16, "si8": np.int8, "ui8": np.uint8}

_EXACT = ("tiu_instructions", "gdma_instructions", "ddr_read_bytes", "ddr_write_bytes", "ddr_copy_bytes")


class PricingError(RuntimeError):
    """A bmodel that cannot be priced; says why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the cache keeps of a compile.

    Attributes:
        folder: with the final MLIR.
        profile: of the bmodel, by the release that compiled it.
    """

    folder: Path
    profile: Profile


def find_compiled(bmodel_sha256: str, cache: Path) -> Kept:
    """The compile that made a bmodel.

    Raises:
        PricingError: the cache does not have it.
    """
    for file in sorted((cache / "bmodels").glob(f"*/{_RESULT}")):
        try:
            result = msgspec.json.decode(file.read_bytes(), type=Compiled)
        except (OSError, msgspec.DecodeError):
            continue  # another process is at it, or another release of ours made it
        if result.bmodel_sha256 == bmodel_sha256:
            return Kept(file.parent, result.profile)
    raise PricingError(f"the compile of bmodel {bmodel_sha256[:12]} is no longer in {cache / 'bmodels'}")


def price(compiled: Path, toolchain: Toolchain, *, timeout_s: float = TIMEOUT_S) -> Profile:
    """Generate code from a finished compile's final MLIR by *toolchain*, and return what that says of it.

    It is a price of that compile's code where :func:`code_changes` of the two profiles has nothing to tell.

    Args:
        compiled: the folder of the compile; it is only read.
        toolchain: the release that prices, the one that compiled or another.
        timeout_s: limit, in seconds.

    Raises:
        PricingError: the release does not make code of it, or a weight is of an unknown type.
        OSError: a file cannot be read or written.
    """
    found = sorted(compiled.glob(FINAL_MLIR))
    if len(found) != 1:
        raise PricingError(f"{compiled}: should have one {FINAL_MLIR}, but has {len(found)}")
    mlir = found[0].absolute()
    with tempfile.TemporaryDirectory(prefix="rwkv-tpu-pricing-") as name:
        work = Path(name)
        _stand_in(mlir, work)
        log = work / "codegen.log"
        # Where nothing else is said, codegen's own defaults are what model_deploy asks for, but for the version.
        command = [str(toolchain.python), "-c", _TPUC_OPT, str(mlir), "--codegen=model_file=model.bmodel"]
        command += ["-o", "/dev/null"]
        done = run(command, folder=work, log=log, environment=toolchain.environment(), timeout_s=timeout_s)
        if done.status != 0:
            said = [line for line in tail(log, lines=100_000).splitlines()[1:] if line.strip()]
            first = next((line for line in said if _TELLING.search(line)), said[0] if said else "it said nothing")
            raise PricingError(
                f"code generation of TPU-MLIR {toolchain.version} from {mlir.name} {done.ending}: {first.strip()[:300]}"
            )
        try:
            return read_profile(work / PROFILE)
        except ProfileError as error:
            raise PricingError(
                f"code generation of TPU-MLIR {toolchain.version} from {mlir.name} left no profile: {error}"
            ) from error


def code_changes(one: Profile, other: Profile) -> tuple[str, ...]:
    """What is not the same of two profiles' instructions and bytes, in words; nothing where the cycles alone differ."""
    pairs = ((name, getattr(one, name), getattr(other, name)) for name in _EXACT)
    return tuple(f"{name} {before:,} -> {after:,}" for name, before, after in pairs if before != after)


# The first lines of a dead tool's log are greetings, and the last ones addresses of its stack.
_TELLING = re.compile(r"error:|what\(\):|Assertion|UNREACHABLE|No module named|command not found|No such file")


def _stand_in(mlir: Path, folder: Path) -> None:
    """Write the file of weights that *mlir* names into *folder*, with zeros for all of them.

    Raises:
        PricingError: the text does not tell them.
    """
    text = mlir.read_text(encoding="utf-8", errors="replace")
    named = _WEIGHT_FILE.search(text)
    if named is None:
        raise PricingError(f"{mlir}: names no file of weights")
    locations = dict(_LOCATION.findall(text))
    weights: dict[str, np.ndarray] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if _WEIGHT.search(line):
            found = _TENSOR.search(line)
            name = locations.get(found["at"], found["at"].strip('"')) if found else ""
            if found is None or found["type"] not in _TYPES or not name or name.startswith("#"):
                raise PricingError(f"{mlir}:{number}: a weight whose name, shape or type cannot be read")
            shape = [int(length) for length in found["shape"].split("x")[:-1]]
            weights[name] = np.zeros(math.prod(shape), _TYPES[found["type"]])
    np.savez(folder / named[1], **weights)  # type: ignore[arg-type]
