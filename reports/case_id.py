"""The parts of a case's id, as far as it has the usual form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_ID = re.compile(r"(decode|prefill|prefill_all)(?:_(\d{1,9}))?-(\w+)-(\w+)((?:\+\w+)*)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseParts:
    """What an id says.

    Attributes:
        graph: ``decode``, ``prefill``, ``prefill_all``; the whole id where it has another form.
        chunk: tokens that a call takes; None where the id does not say.
        options: of the compiler, with ``+`` between them.
    """

    graph: str
    chunk: int | None = None
    quantization: str = ""
    variant: str = ""
    options: str = ""


@lru_cache(50_000)
def case_parts(case: str) -> CaseParts:
    """Take an id apart; one of another form is a graph's name and nothing else."""
    found = _ID.fullmatch(case)
    if found is None:
        return CaseParts(graph=case)
    graph, chunk, quantization, variant, options = found.groups()
    length = int(chunk) if chunk else 1 if graph == "decode" else None
    return CaseParts(graph=graph, chunk=length, quantization=quantization, variant=variant, options=options.lstrip("+"))
