"""Random changes of an exported graph: small models of what exporters, passes and people get wrong without a plan."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from tests.detection.onnx_graph import OnnxGraph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from onnx import ModelProto, NodeProto

    Shape = tuple[int, tuple[int, ...]]

SEED = 1


class Kind(Enum):
    """What is changed."""

    CONSTANT = "constant perturbed"
    EDGE = "edge moved"
    NODE = "node dropped"
    ATTRIBUTE = "attribute changed"


@dataclass(frozen=True)
class Mutant:
    """A graph with one change.

    Attributes:
        graph: name of the graph that was changed.
        index: its number among that graph's mutants.
        kind: of the change.
        what: the change, in words.
        model: with the change in it.
        redrawn: changes of this place in the sequence that made no graph which runs, and were drawn anew.
    """

    graph: str
    index: int
    kind: Kind
    what: str
    model: ModelProto
    redrawn: int

    @property
    def name(self) -> str:
        """Graph and number."""
        return f"{self.graph}#{self.index}"


def mutants(graph: str, model: ModelProto, count: int, seed: int = SEED) -> Iterator[Mutant]:
    """Draw *count* changes of *model*, the kinds in turn; the same for the same graph and seed.

    A change that makes no graph which loads, runs and gives outputs of the right shapes is drawn anew: the compiler
    would refuse it, and nobody had to compare numbers. So is one that was drawn before.
    """
    seen: set[str] = set()
    for index in range(count):
        kind = list(Kind)[index % len(Kind)]
        for attempt in range(1000):
            rng = random.Random(f"{graph} {seed} {index} {attempt}")  # noqa: S311 - reproducible, not secret
            changed = onnx.ModelProto.FromString(model.SerializeToString())
            what = _DRAW[kind](changed, rng)
            if what and what not in seen and runs(changed):
                seen.add(what)
                yield Mutant(graph, index, kind, what, changed, attempt)
                break
        else:
            raise RuntimeError(f"{graph}: no further {kind.value} that runs, after {index} mutants")


def runs(model: ModelProto) -> bool:
    """Whether ONNX Runtime takes the graph, and its outputs have the shapes that it declares."""
    try:
        return OnnxGraph(model).keeps_shapes()
    except Exception:  # noqa: BLE001 - the library raises a class of its own for every reason
        return False


def _constant(model: ModelProto, rng: random.Random) -> str:
    """Another factor, another element, or two elements that change places."""
    tensor = rng.choice(model.graph.initializer)
    value = numpy_helper.to_array(tensor).copy()
    flat = value.reshape(-1)
    i = rng.randrange(flat.size)
    if value.dtype.kind != "f":
        change = rng.choice((-1, 1))
        with np.errstate(over="ignore"):  # the end of a slice may be the largest number there is
            flat[i] += change
        what = f"{tensor.name}[{i}] {change:+d}"
    elif (how := rng.choice(("factor", "element", "swap"))) == "factor":
        factor = rng.choice((0.9, 0.99, 1.01, 1.1))
        flat *= factor
        what = f"{tensor.name} x {factor}"
    elif how == "element":
        change = float(np.sqrt(np.mean(flat.astype(np.float64) ** 2))) or 1.0
        flat[i] += min(change, 1e4)
        what = f"{tensor.name}[{i}] + its root mean square"
    else:
        j = rng.randrange(flat.size)
        flat[[i, j]] = flat[[j, i]]
        what = f"{tensor.name}[{i}] and [{j}] swapped"
    if np.array_equal(value, numpy_helper.to_array(tensor)):
        return ""
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return what


def _edge(model: ModelProto, rng: random.Random) -> str:
    """An input of a node becomes another tensor of its type and shape."""
    shapes = _shapes(model)
    at = rng.randrange(len(model.graph.node))
    node = model.graph.node[at]
    slot = rng.randrange(len(node.input))
    old = node.input[slot]
    later = {name for other in model.graph.node[at:] for name in other.output}
    others = [name for name, shape in shapes.items() if shape == shapes.get(old) and name != old and name not in later]
    if not others:
        return ""
    node.input[slot] = rng.choice(others)
    return f"{_call(node)} takes {node.input[slot]} in place of {old}"


def _node(model: ModelProto, rng: random.Random) -> str:
    """A node hands on one of its inputs."""
    shapes = _shapes(model)
    node = rng.choice(model.graph.node)
    same = [name for name in node.input if shapes.get(name) == shapes.get(node.output[0])]
    if not same or node.op_type == "Identity":
        return ""
    kept = rng.choice(same)
    what = f"{_call(node)} gives {kept}"
    node.CopyFrom(helper.make_node("Identity", [kept], list(node.output), name=node.name))
    return what


def _attribute(model: ModelProto, rng: random.Random) -> str:
    """Another axis, permutation, epsilon or flag; each name of an attribute is as likely as the next."""
    found: dict[str, list[tuple[NodeProto, onnx.AttributeProto]]] = {}
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "allowzero":  # says what a 0 in a shape means, and no shape here has one
                continue
            found.setdefault(f"{node.op_type}.{attribute.name}", []).append((node, attribute))
    node, attribute = rng.choice(found[rng.choice(sorted(found))])
    before = helper.get_attribute_value(attribute)
    if attribute.type == onnx.AttributeProto.FLOAT:
        after = before * rng.choice((0.1, 10.0, 1000.0))
    elif attribute.type == onnx.AttributeProto.INTS:
        after = rng.sample(list(before), len(before))
    elif attribute.name == "keepdims":
        after = 1 - before
    else:
        after = before + rng.choice((-1, 1))
    if after == before:
        return ""
    attribute.CopyFrom(helper.make_attribute(attribute.name, after))
    return f"{_call(node)}: {attribute.name} {_short(after)} in place of {_short(before)}"


_DRAW: dict[Kind, Callable[[ModelProto, random.Random], str]] = {
    Kind.CONSTANT: _constant,
    Kind.EDGE: _edge,
    Kind.NODE: _node,
    Kind.ATTRIBUTE: _attribute,
}


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _call(node: NodeProto) -> str:
    return f"{node.op_type} of {node.output[0]}"


def _shapes(model: ModelProto) -> dict[str, Shape]:
    """Type and shape of every tensor, in the order of the graph."""
    graph = shape_inference.infer_shapes(model).graph
    shapes = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        of = value.type.tensor_type
        shapes[value.name] = of.elem_type, tuple(dim.dim_value for dim in of.shape.dim)
    return shapes


def count_by_kind(drawn: list[Mutant]) -> Counter[Kind]:
    """How many there are of each kind."""
    return Counter(mutant.kind for mutant in drawn)
