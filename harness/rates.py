"""How fast each toolchain lets weights pass at best: what a sweep found, kept in ``rates.toml``, and floors from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from compile.floor import floor, minimum
from compile.sweep import Rates

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compile.floor import Floor, Shapes
    from compile.sweep import Product
    from compile.toolchain import Toolchain
    from harness.cases import Case

RATES = Path(__file__).with_name("rates.toml")

_HEADING = """\
# Matrix-vector products as the compiler's cycle profile predicts them: no measurements. The best of them gives the rate
# that floors are made with (docs/performance.md). Written by `rwkv-tpu profile --sweep`, one table a release.
"""


class RatesError(ValueError):
    """The file of rates cannot be read; the message names it."""


def read_rates(path: Path = RATES) -> dict[str, Rates]:
    """What is known, by release.

    Raises:
        RatesError: the file is missing or is not one of rates.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=dict[str, Rates])
    except (OSError, msgspec.DecodeError) as error:
        raise RatesError(f"{path}: {error}; `rwkv-tpu profile --sweep` writes one") from error


def keep_rates(toolchain: Toolchain, products: Iterable[Product], path: Path = RATES) -> Rates:
    """Put a sweep in the place of what the file holds of that release; other releases stay."""
    found = Rates(compiler=toolchain.compiler_commit, wheel_sha256=toolchain.wheel_sha256, products=tuple(products))
    every = (read_rates(path) if path.exists() else {}) | {toolchain.version: found}
    whole = path.with_suffix(".new")
    whole.write_text(_HEADING + "".join(_table(version, every[version]) for version in sorted(every)))
    whole.replace(path)
    return found


def floor_of(case: Case, shapes: Shapes, release: str, path: Path = RATES) -> Floor | None:
    """The floor under a case of a model with tensors of these shapes; None where the release was never swept."""
    rates = read_rates(path).get(release)
    if rates is None:
        return None
    return floor(minimum(shapes, case.graph, case.quantization), rates.best.bytes_per_ns)


def _table(version: str, rates: Rates) -> str:
    rows = "".join(
        f"  {{ inputs = {one.inputs}, outputs = {one.outputs}, quantization = {one.quantization.value!r}, "
        f"minimum_bytes = {one.minimum_bytes}, predicted_cycles = {one.predicted_cycles} }},\n"
        for one in rates.products
    ).replace("'", '"')
    return (
        f'\n["{version}"]\ncompiler = "{rates.compiler}"\nwheel_sha256 = "{rates.wheel_sha256}"\n'
        f"products = [\n{rows}]\n"
    )
