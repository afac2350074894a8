"""Mixed tables: operations that an option forces to float32, by patterns of their names in the TOP dialect."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compile.options import Option

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Table:
    """Patterns, each of a whole name.

    Attributes:
        operations: of the TOP dialect, by the compiler's names for them, of the variant chunk.
        tensors: the weights that these operations take, by BlinkDL's names.
    """

    operations: str
    tensors: str


TABLES = {
    Option.F32_HEAD: Table(r"logits_MatMul", r"head\.weight"),
    Option.F32_FFN: Table(
        r"/blocks\.\d+/ffn/(key|value)/MatMul_output_0_MatMul", r"blocks\.\d+\.ffn\.(key|value)\.weight"
    ),
    Option.F32_ATT: Table(
        r"/blocks\.\d+/att/(projections/(receptance|key|value)|output)/MatMul_output_0_MatMul",
        r"blocks\.\d+\.att\.(receptance|key|value|output)\.weight",
    ),
}


def operations_of(options: Iterable[Option]) -> tuple[str, ...]:
    """The patterns of operations that *options* force to float32."""
    return tuple(TABLES[option].operations for option in options if option in TABLES)


def tensors_of(options: Iterable[Option]) -> re.Pattern[str] | None:
    """What fits the weights of those operations; None where there are none."""
    patterns = [TABLES[option].tensors for option in options if option in TABLES]
    return re.compile("|".join(patterns)) if patterns else None


def named(patterns: Iterable[str], operations: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those of *operations* that a pattern names, and the patterns that name none."""
    every = list(dict.fromkeys(operations))
    found = {pattern: [name for name in every if re.fullmatch(pattern, name)] for pattern in patterns}
    return [name for names in found.values() for name in names], [one for one, names in found.items() if not names]
