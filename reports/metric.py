"""What a metric's name tells: the kind of figure, and its unit."""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache


class Kind(Enum):
    """Where a figure comes from, which decides what it may be used for."""

    MEASURED = "measured"  # on the target; of a simulator only numbers that a chip would give too
    PREDICTED = "predicted"  # by the compiler's cycle profile
    COMPILED = "compiled"  # time, memory and size of the compile
    SIMULATOR_WALL = "simulator_wall"  # of the simulator's own process: no performance figure
    HOST_WALL = "host_wall"  # wall time of the machine that ran the check: no performance figure


_AT_DEPTH = re.compile(r"_at_\d+$")
_UNITS = {
    "_nats": "nats",
    "_share": "share",
    "_accuracy": "share",
    "_tokens_per_s": "tokens/s",
    "_ms": "ms",
    "_seconds": "s",
    "_s": "s",
    "_bytes": "bytes",
    "_cycles": "cycles",
    "_instructions": "instructions",
    "_mhz": "MHz",
    "_c": "°C",
    "_tokens": "tokens",
}
_NAMES = 10_000  # each figure of a report asks, and there are few names
_COUNTS = {
    "positions",
    "near_ties",
    "questions",
    "exact_matches",
    "greedy_near_ties",
    "refusals",
    "nan_hidden",
    "entries",
    "lambada_documents",
}


@lru_cache(_NAMES)
def measured_kind(name: str) -> Kind:
    """The kind of a figure among a record's ``metrics``: those of the simulator's process say so in their names."""
    return Kind.SIMULATOR_WALL if name.startswith("simulator_") else Kind.MEASURED


@lru_cache(_NAMES)
def unit_of(name: str) -> str:
    """The unit that the name ends with; empty for a figure without unit."""
    if name in _COUNTS:
        return "count"
    plain = _AT_DEPTH.sub("", name)
    return next((unit for ending, unit in _UNITS.items() if plain.endswith(ending)), "")
