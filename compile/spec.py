"""What to compile: one graph of a model, and the options that the compiler gets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MOST_TOKENS = 4096
"""A call's: graphs are written out chunk by chunk, and far above this they would fill memory before any compile."""


DEFAULT_GROUP = 64
"""Inputs of a matrix that share a step and a zero point, where the compiler is not told another number."""


class GraphKind(Enum):
    """What a graph takes and gives back."""

    DECODE = "decode"  # one token, its logits
    PREFILL = "prefill"  # T tokens, the logits of the last
    PREFILL_ALL = "prefill_all"  # T tokens, the logits of each


class Quantization(Enum):
    """The compiler's names for the precision of weights and arithmetic on BM1684X."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    W8F16 = "W8F16"
    W4F16 = "W4F16"
    W8BF16 = "W8BF16"
    W4BF16 = "W4BF16"

    @property
    def weight_bits(self) -> int:
        """Bits of a weight's code; 0 where weights are not coded."""
        return {"W8": 8, "W4": 4}.get(self.value[:2], 0)

    @property
    def weight_group(self) -> int:
        """Inputs of a matrix that share a step and a zero point unless told otherwise; 1 without codes."""
        return DEFAULT_GROUP if self.weight_bits else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """One graph: its kind and the tokens that a call takes."""

    kind: GraphKind
    T: int = 1

    def __post_init__(self) -> None:
        """Refuse lengths that make no sense."""
        if not 1 <= self.T <= MOST_TOKENS or (self.kind is GraphKind.DECODE) != (self.T == 1):
            expected = f"decode takes 1, the others 2 to {MOST_TOKENS:,}"
            raise ValueError(f"{self.kind.value} with {self.T} tokens a call; {expected}")

    @property
    def name(self) -> str:
        """The net's name inside the bmodel: ``decode``, ``prefill_16``, ``prefill_all_16``."""
        return self.kind.value if self.kind is GraphKind.DECODE else f"{self.kind.value}_{self.T}"
