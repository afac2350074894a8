"""The grid: which graphs, chunk lengths, precisions and compiler options a run compiles and judges."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from compile.graphs.loop import Rwkv7Loop
from compile.graphs.model import Rwkv7
from compile.options import Option, OptionError, in_order, parse_options
from compile.spec import GraphKind, GraphSpec, Quantization
from harness.toml_lines import line_of, line_of_error

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    import pytest

GRIDS = Path(__file__).parent.parent / "suites" / "grids"

VARIANTS: dict[str, type[Rwkv7]] = {"chunk": Rwkv7, "fused": Rwkv7, "loop": Rwkv7Loop}
"""Ways of writing the model as a graph, by name.

``fused`` is ``chunk`` with its ReLU right behind its product, in those precisions too in which the compiler then loses
it (:mod:`compile.unfused`): to be seen failing, and to be seen if a release no longer does.
"""


BLOCKS = "blocks"
"""How an id says that a case is compiled in parts; a case that is compiled as a whole does not say so."""


_Value = TypeVar("_Value")


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


EXTRA_CHECKS = ("state/drift", "lambada/paired")
"""Checks that take long, and are made only where a grid asks for them: suite and name."""


class _GridFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    quantizations: tuple[Quantization, ...]
    chunk_lengths: tuple[int, ...]
    variants: tuple[str, ...] = ("chunk",)
    blocks: tuple[bool, ...] = (False,)
    options: tuple[tuple[str, ...], ...] = ((),)
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """A named set of cases.

    Attributes:
        name: of the file, without its folder and end.
        sha256: of the file.
        cases: each once.
        also: those of EXTRA_CHECKS that are made.
    """

    name: str
    sha256: str
    cases: tuple[Case, ...]
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowed:
    """What a command line makes of a grid, in words as typed; None leaves the grid's own.

    Attributes:
        quantizations: these alone, names with commas between.
        chunk_lengths: these alone, numbers with commas between; empty for none, which leaves decode.
        variant: this one in place of the grid's.
        options: these in place of the grid's, names with commas between; empty for none.
    """

    quantizations: str | None = None
    chunk_lengths: str | None = None
    variant: str | None = None
    options: str | None = None


def load_grid(name_or_file: str, narrowed: Narrowed | None = None) -> Grid:
    """Read a grid by the name of one that ships, or from a TOML file.

    Args:
        name_or_file: ``smoke``, ``default``, …, or the path of a file.
        narrowed: what a command line wants of it.

    Raises:
        GridError: no such grid; a file that is not one: names file and line; or what is wanted is not in it.
        OptionError: options that are wanted do not exist or do not go together.
    """
    wanted = narrowed or Narrowed()
    asked = None if wanted.options is None else split_options(wanted.options)
    shipped = GRIDS / f"{name_or_file}.toml"
    path = shipped if shipped.is_file() else Path(name_or_file)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        names = ", ".join(sorted(p.stem for p in GRIDS.glob("*.toml")))
        raise GridError(f"no grid {name_or_file!r}: neither one that ships ({names}) nor a file") from error
    except OSError as error:
        raise GridError(f"{path}: {error.strerror}") from error
    grid = _parsed(data, path)
    if wanted.variant is not None and wanted.variant not in VARIANTS:
        raise GridError(f"no graph variant {wanted.variant!r}; there are {', '.join(sorted(VARIANTS))}")
    variants = grid.variants if wanted.variant is None else (wanted.variant,)
    lengths = _narrowed("chunk_lengths", wanted.chunk_lengths, {str(T): T for T in grid.chunk_lengths}, path)
    graphs = [GraphSpec(kind=GraphKind.DECODE)]
    graphs += [GraphSpec(kind=kind, T=T) for T in lengths for kind in (GraphKind.PREFILL, GraphKind.PREFILL_ALL)]
    combinations = [parse_options(names) for names in grid.options] if asked is None else [asked]
    by_name = {quantization.value: quantization for quantization in grid.quantizations}
    cases = tuple(
        Case(graph=graph, quantization=quantization, variant=variant, blocks=blocks, options=combination)
        for quantization in _narrowed("quantizations", wanted.quantizations, by_name, path)
        for variant in variants
        for blocks in grid.blocks
        for combination in combinations
        for graph in graphs
    )
    return Grid(path.stem, hashlib.sha256(data).hexdigest(), cases, grid.also)


def _parsed(data: bytes, path: Path) -> _GridFile:
    """Make sense of a grid's file.

    Raises:
        GridError: there is none; names file and line, what was found and what should be.
    """
    try:
        text = data.decode()
        grid = msgspec.toml.decode(data, type=_GridFile)
    except msgspec.ValidationError as error:
        names = ", ".join(quantization.value for quantization in Quantization)
        words = f"{error}{f'; should be one of {names}' if 'enum' in str(error) else ''}"
        raise GridError(f"{path}:{line_of_error(words, text)}: {words}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # of the former, the text has the line
        raise GridError(f"{path}: {error}") from error
    axes: dict[str, Callable[[Any], object]] = {
        "quantizations": Quantization,
        "chunk_lengths": lambda T: GraphSpec(kind=GraphKind.PREFILL, T=T),
        "variants": _one_of("graph variant", VARIANTS),
        "blocks": bool,
        "options": parse_options,
        "also": _one_of("check", EXTRA_CHECKS),
    }
    for key, read in axes.items():
        values: tuple[object, ...] = getattr(grid, key)
        for index, value in enumerate(values):
            where = f"{path}:{line_of(text, key, index)}: {key}"
            try:
                read(value)
            except ValueError as error:
                raise GridError(f"{where}: {error}") from error
            if value in values[:index]:
                raise GridError(f"{where}: {value!r} stands there twice, but should once")
    for key in axes.keys() - {"chunk_lengths", "also"}:
        if not getattr(grid, key):
            raise GridError(f"{path}:{line_of(text, key)}: {key} is empty, but should have at least one entry")
    return grid


def _one_of(what: str, names: Collection[str]) -> Callable[[str], str]:
    def read(name: str) -> str:
        if name not in names:
            raise ValueError(f"no {what} {name!r}; there are {', '.join(sorted(names))}")
        return name

    return read


def _narrowed(key: str, wanted: str | None, there: dict[str, _Value], path: Path) -> list[_Value]:
    """The values of an axis that a command line wants, in the axis's order."""
    if wanted is None:
        return list(there.values())
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in there:
            has = ", ".join(there) or "none"
            raise GridError(f"{key} {name!r}: {path} has {has}; for others, write a grid of your own")
    return [value for name, value in there.items() if name in names]


def one_length(cases: Sequence[Case], which: Literal["shortest", "longest"]) -> list[Case]:
    """Of cases that differ in their chunk length alone, the one with the *which*."""
    best: dict[tuple[GraphKind, Case], Case] = {}
    for case in sorted(cases, key=lambda case: case.graph.T, reverse=which == "longest"):
        best.setdefault((case.graph.kind, case.decode), case)
    return [case for case in cases if case in best.values()]


def prefills_of(case: Case, cases: Iterable[Case]) -> list[Case]:
    """Those of *cases* that prefill for the decode graph of *case*, the shortest chunks first."""
    found = [one for one in cases if one.graph.kind is GraphKind.PREFILL and one.decode == case.decode]
    return sorted(found, key=lambda one: one.graph.T)


def case_of(item: pytest.Item) -> Case | None:
    """The case that a test was given; None where it concerns no compiled graph."""
    callspec = getattr(item, "callspec", None)
    found = None if callspec is None else callspec.params.get("case")
    return found if isinstance(found, Case) else None  # pytest has a mark of its own where there is none at all
