"""The grid: which graphs, chunk lengths, precisions and compiler options a run compiles and judges."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from compile.graphs.loop import Rwkv7Loop
from compile.graphs.model import Rwkv7
from compile.options import Option, OptionError, in_order, parse_options
from compile.spec import GraphKind, GraphSpec, Quantization

if TYPE_CHECKING:
    import pytest

GRIDS = Path(__file__).parent.parent / "suites" / "grids"

VARIANTS: dict[str, type[Rwkv7]] = {"chunk": Rwkv7, "loop": Rwkv7Loop}
"""Ways of writing the model as a graph, by name."""


BLOCKS = "blocks"
"""How an id says that a case is compiled in parts; a case that is compiled as a whole does not say so."""


class GridError(ValueError):
    """A grid that does not exist or does not make sense: names the file, what was expected and what was found."""


class CaseError(ValueError):
    """A text that is no case's id: says what an id looks like and what does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One point of the grid; checkpoint and toolchain are those of the run.

    Attributes:
        blocks: whether embedding, layers and head are compiled one by one, and joined in one bmodel.
        options: of the compiler, beside the flags that every graph of its kind gets; in the order of their names.
    """

    graph: GraphSpec
    quantization: Quantization
    variant: str = "chunk"
    blocks: bool = False
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is written in another order: the same case would have two values.

        Raises:
            OptionError: that, or options that contradict each other.
        """
        if self.options != (expected := in_order(self.options)):
            names = [[option.value for option in options] for options in (self.options, expected)]
            raise OptionError(f"options in the order {names[0]}, but should be {names[1]}: see in_order")

    @property
    def id(self) -> str:
        """The pytest id, and the key in every record."""
        extras = [BLOCKS] if self.blocks else []
        extras += [option.value for option in self.options]
        return f"{self.graph.name}-{self.quantization.value}-{self.variant}{''.join(f'+{extra}' for extra in extras)}"

    @property
    def net(self) -> str:
        """What the runtime calls it: the net's name in the bmodel, or that of all its blocks together."""
        return f"blocks_{self.graph.T}" if self.blocks else self.graph.name

    @property
    def decode(self) -> Case:
        """The decode graph that finishes what this case's prefill leaves over: their states must be of one type."""
        return replace(self, graph=GraphSpec(kind=GraphKind.DECODE))


def parse_case(text: str) -> Case:
    """The case of an id, as :attr:`Case.id` writes it.

    Raises:
        CaseError: the text is no id.
    """

    def wrong(what: str) -> CaseError:
        form = (
            f"GRAPH-PRECISION-VARIANT, with +{BLOCKS} behind it where it is compiled in parts, and +OPTION for each "
            "option: prefill_64-F16-chunk+opt1"
        )
        return CaseError(f"no case {text!r}: {what}. An id is {form}")

    parts = text.split("-", 2)
    if len(parts) != 3:
        raise wrong("three parts with hyphens between them are expected")
    graph, precision, rest = parts
    variant, *names = rest.split("+")
    kind, _, length = graph.rpartition("_") if graph != GraphKind.DECODE.value else (graph, "", "1")
    if kind not in {one.value for one in GraphKind} or not (length.isascii() and length.isdecimal()):
        raise wrong(f"{graph!r} is none of decode, prefill_T, prefill_all_T")
    if precision not in {one.value for one in Quantization}:
        raise wrong(f"{precision!r} is none of {', '.join(one.value for one in Quantization)}")
    if variant not in VARIANTS:
        raise wrong(f"{variant!r} is none of {', '.join(sorted(VARIANTS))}")
    blocks = names[:1] == [BLOCKS]
    try:
        spec = GraphSpec(kind=GraphKind(kind), T=int(length))
        options = parse_options(names[blocks:])
    except ValueError as error:
        raise wrong(str(error)) from error
    case = Case(graph=spec, quantization=Quantization(precision), variant=variant, blocks=blocks, options=options)
    if case.id != text:
        raise wrong(f"it is written {case.id!r}")
    return case


def split_options(text: str) -> tuple[Option, ...]:
    """Options as typed on a command line, with commas between; none where there is nothing.

    Raises:
        OptionError: they do not exist or do not go together.
    """
    return parse_options(name.strip() for name in text.split(",") if name.strip())


class _GridFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    quantizations: tuple[Quantization, ...]
    chunk_lengths: tuple[int, ...]
    variants: tuple[str, ...] = ("chunk",)
    blocks: tuple[bool, ...] = (False,)
    options: tuple[tuple[str, ...], ...] = ((),)


@dataclass(frozen=True, slots=True)
class Grid:
    """A named set of cases."""

    name: str
    sha256: str
    cases: tuple[Case, ...]


def load_grid(name_or_file: str, variant: str | None = None, options: str | None = None) -> Grid:
    """Read a grid by the name of one that ships, or from a TOML file.

    Args:
        name_or_file: ``smoke``, ``default``, …, or the path of a file.
        variant: put this variant in place of the grid's own.
        options: put these, names with commas between, in place of the grid's own; empty for none.

    Raises:
        GridError: no such grid, or a file that is not one.
        OptionError: *options* do not exist or do not go together.
    """
    asked = None if options is None else split_options(options)
    shipped = GRIDS / f"{name_or_file}.toml"
    path = shipped if shipped.is_file() else Path(name_or_file)
    try:
        text = path.read_bytes()
        grid = msgspec.toml.decode(text, type=_GridFile)
    except FileNotFoundError as error:
        names = ", ".join(sorted(p.stem for p in GRIDS.glob("*.toml")))
        raise GridError(f"no grid {name_or_file!r}: neither one that ships ({names}) nor a file") from error
    except (OSError, msgspec.DecodeError) as error:
        raise GridError(f"{path}: {error}") from error
    variants = (variant,) if variant else grid.variants
    if unknown := [v for v in variants if v not in VARIANTS]:
        raise GridError(f"{path}: no graph variant {unknown[0]!r}; there are {', '.join(sorted(VARIANTS))}")
    try:
        graphs = [GraphSpec(kind=GraphKind.DECODE)]
        graphs += [
            GraphSpec(kind=kind, T=T) for T in grid.chunk_lengths for kind in (GraphKind.PREFILL, GraphKind.PREFILL_ALL)
        ]
    except ValueError as error:
        raise GridError(f"{path}: chunk_lengths: {error}") from error
    try:
        combinations = [asked] if asked is not None else [parse_options(names) for names in grid.options]
    except OptionError as error:
        raise GridError(f"{path}: {error}") from error
    cases = [
        Case(graph=graph, quantization=quantization, variant=v, blocks=blocks, options=combination)
        for quantization in grid.quantizations
        for v in variants
        for blocks in grid.blocks
        for combination in combinations
        for graph in graphs
    ]
    if not cases or len({case.id for case in cases}) != len(cases):
        raise GridError(f"{path}: an axis is empty or holds a value twice")
    return Grid(path.stem, hashlib.sha256(text).hexdigest(), tuple(cases))


def case_of(item: pytest.Item) -> Case | None:
    """The case that a test was given; None where it concerns no compiled graph."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("case")
