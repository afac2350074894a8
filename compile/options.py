"""Options of ``model_deploy`` that may be had or not, each by a short name, and the flags that they stand for.

Flags that a graph gets without being asked for come from :mod:`compile.flags`. Those that it gets because they are best
for all of its kind can be taken away by an option as well; those that it does not compile without cannot. Left out is
``--opt 3``, with which TPU-MLIR 1.30.2 aborts on these graphs.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from compile.spec import Quantization


class Option(Enum):
    """One option, by the name that ids have for it."""

    OPT1 = "opt1"  # groups as many layers as possible, in place of a search for the cheapest groups
    OPT2 = "opt2"  # that search, the compiler's default, also for graphs that do without it otherwise
    NO_LAYER_GROUP = "no_layer_group"  # one operation after the other, each from DDR and back
    NO_TOPO_SORT = "no_topo_sort"  # operations are grouped in the graph's own order
    TOPO_SORT = "topo_sort"  # they are sorted first, also in graphs that are not sorted otherwise
    QUANT_INPUT = "quant_input"  # inputs in the precision of the arithmetic, without casts
    QUANT_OUTPUT = "quant_output"  # the same of outputs
    FLOAT_OUTPUT = "float_output"  # outputs in float32, also of graphs that do without that cast otherwise
    HIGH_PRECISION = "high_precision"  # some operations, such as LayerNorm, in float32
    IO_ALONE = "io_alone"  # inputs and outputs beside the other memory, the runtime copies neither
    IO_TAG = "io_tag"  # inputs and outputs by a tag that stands for an address
    IO_RELOC = "io_reloc"  # addresses of inputs and outputs written into the instructions at launch
    IN_REUSE = "in_reuse"  # memory of inputs may be written to once they were read
    SAME_ADDR = "same_addr"  # each next state at the address of the state
    GROUP32 = "group32"  # 32 inputs of a matrix share a step and a zero point, in place of 64
    GROUP128 = "group128"  # 128 of them
    F32_HEAD = "f32_head"  # the product that makes the logits in float32
    F32_FFN = "f32_ffn"  # both products of channel-mix
    F32_ATT = "f32_att"  # the four projections of time-mix
    F16_STATE = "f16_state"  # states in float16 between calls: another graph, see compile/half_state.py
    HOST_EMBEDDING = "host_embedding"  # its rows as input, the table on the host: see compile/host_embedding.py
    STACKED_STATE = "stacked_state"  # the states of all layers in two tensors: see compile/stacked_state.py


ADDRESS_MODES = frozenset({Option.IO_ALONE, Option.IO_TAG, Option.IO_RELOC, Option.IN_REUSE})
"""Ways to address inputs and outputs; a compile has one."""

WEIGHT_GROUPS = {Option.GROUP32: 32, Option.GROUP128: 128}
"""Group sizes other than the compiler's own."""

_ONE_OF = {
    ADDRESS_MODES: "inputs and outputs are addressed in one way only, so that one address mode is possible",
    frozenset(WEIGHT_GROUPS): "all matrices have groups of one size",
    frozenset({Option.F16_STATE, Option.FLOAT_OUTPUT}): "the next states are float16 or float32",
}
_GROUPING = frozenset(
    {Option.OPT1, Option.OPT2, Option.NO_TOPO_SORT, Option.TOPO_SORT}
)  # they say how layers are grouped
_OPPOSITE = {  # which it takes away
    Option.OPT2: Option.OPT1,
    Option.TOPO_SORT: Option.NO_TOPO_SORT,
    Option.FLOAT_OUTPUT: Option.QUANT_OUTPUT,
}
_TABLES = frozenset({Option.F32_HEAD, Option.F32_FFN, Option.F32_ATT})  # no flags: see compile/mixed.py
_GRAPHS = frozenset({Option.HOST_EMBEDDING, Option.STACKED_STATE})  # no flags: another graph
_FLAGS = {
    Option.OPT1: ("--opt", "1"),
    Option.NO_LAYER_GROUP: ("--disable_layer_group",),
    Option.NO_TOPO_SORT: ("--disable_topo_sort",),
    Option.QUANT_INPUT: ("--quant_input",),
    Option.F16_STATE: ("--quant_input",),  # of outputs every graph has the same anyway
    Option.QUANT_OUTPUT: ("--quant_output",),
    Option.HIGH_PRECISION: ("--high_precision",),
    **{mode: ("--addr_mode", mode.value) for mode in ADDRESS_MODES},
    **{option: ("--q_group_size", str(size)) for option, size in WEIGHT_GROUPS.items()},
}


class OptionError(ValueError):
    """Options that do not exist or do not go together; says which, and which there are."""


def option_named(name: str) -> Option:
    """The option of that name.

    Raises:
        OptionError: there is none.
    """
    try:
        return Option(name)
    except ValueError as error:
        known = ", ".join(sorted(option.value for option in Option))
        raise OptionError(f"no option {name!r} of the compiler; there are {known}") from error


def parse_options(names: Iterable[str]) -> tuple[Option, ...]:
    """The options of these names, in the order of ids.

    Raises:
        OptionError: a name is no option's, or they contradict each other.
    """
    return in_order(map(option_named, names))


def in_order(options: Iterable[Option]) -> tuple[Option, ...]:
    """The options sorted by name.

    Raises:
        OptionError: they contradict each other.
    """
    found = tuple(sorted(options, key=lambda option: option.value))
    if reason := conflict(found):
        raise OptionError(f"options {'+'.join(option.value for option in found)}: {reason}")
    return found


def conflict(options: Sequence[Option]) -> str:
    """Why these do not go together; empty where they do."""
    if len(set(options)) != len(options):
        return "one of them stands there twice"
    for exclusive, reason in _ONE_OF.items():
        if len(exclusive.intersection(options)) > 1:
            return reason
    if Option.SAME_ADDR in options and not ADDRESS_MODES.isdisjoint(options):
        # With io_reloc such a bmodel compiles, loads and gives wrong numbers (TPU-MLIR 1.30.2).
        return "same_addr makes a state and the next one share an address, an address mode lets the runtime choose both"
    for option, taken in _OPPOSITE.items():
        if option in options and taken in options:
            return f"{option.value} takes away what {taken.value} adds"
    if Option.NO_LAYER_GROUP in options and not _GROUPING.isdisjoint(options):
        return "without layer groups there is nothing that the others could act on"
    return ""


def with_options(flags: Sequence[str], options: Iterable[Option], n_states: int) -> tuple[str, ...]:
    """*flags* without those that *options* take away, then those of *options* that are not among them.

    Args:
        flags: arguments of ``model_deploy`` that come first; where one has another value, the option's counts.
        options: what to add or to take away.
        n_states: state tensors of the graph, of which the first follows the token and the logits.
    """
    asked = tuple(options)
    found = list(flags)
    for option in asked:
        taken = list(_FLAGS[_OPPOSITE[option]]) if option in _OPPOSITE else []
        for i in reversed(range(len(found) - len(taken) + 1 if taken else 0)):
            if found[i : i + len(taken)] == taken:
                del found[i : i + len(taken)]
    for option in asked:
        added = option_flags(option, n_states)
        if added and not any(tuple(found[i : i + len(added)]) == added for i in range(len(found))):
            found += added
    return tuple(found)


def option_flags(option: Option, n_states: int) -> tuple[str, ...]:
    """The arguments of ``model_deploy`` that an option adds for a graph of so many states; none where it takes away."""
    if option in _OPPOSITE or option in _TABLES | _GRAPHS:
        return ()
    if option is Option.SAME_ADDR:
        # Input 0 is the token and output 0 the logits, so a state and the one after it have the same number.
        return "--same_addr", ",".join(f"{i}:{i}" for i in range(1, 1 + n_states))
    return _FLAGS[option]


def weight_group(quantization: Quantization, flags: Sequence[str]) -> int:
    """Inputs of a matrix that share a step, for a graph that gets *flags*; 1 without codes."""
    if not quantization.weight_bits or "--q_group_size" not in flags:
        return quantization.weight_group
    return int(flags[len(flags) - 1 - list(reversed(flags)).index("--q_group_size") + 1])
