"""The nets of a file, read by a map: what the map gets wrong is told before anything runs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compile.spec import GraphKind, GraphSpec
from harness.own.io_map import LAYER, IoMap, Order, Rows
from runtime.binding import Dtype
from runtime.nets import EmbeddingRows, Net, Part, State, bytes_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from reference.shape import ModelShape
    from runtime.piece import Piece

    Port = Mapping[str, Any]
    Described = Mapping[str, Any]

_TOKENS, _LOGITS = "tokens", "logits"
_SUFFIX = r"_[A-Z][A-Za-z0-9]*(_[a-z]+[0-9]+)?"
"""What the compiler puts behind an output's name: the operator that gives it, and sometimes a type."""


@dataclass(frozen=True, slots=True)
class _Role:
    """One tensor that the map speaks of; *state* is its number, None for token and logits."""

    section: str
    input: str
    output: str
    state: int | None = None


def graphs_of(io: IoMap, name: str) -> tuple[GraphSpec, ...]:
    """What a net of the map is judged as: one that gives every position stands for both kinds of prefill."""
    entry = io.file.nets[name]
    if entry.tokens == 1:
        return (GraphSpec(kind=GraphKind.DECODE),)
    kinds = [GraphKind.PREFILL, *([GraphKind.PREFILL_ALL] if entry.logits is Rows.EVERY else [])]
    return tuple(GraphSpec(kind=kind, T=entry.tokens) for kind in kinds)


def matched(
    io: IoMap,
    described: Sequence[tuple[Described, str]],
    model: ModelShape,
    *,
    only: Collection[str] | None = None,
    types: bool = True,
) -> tuple[Net, ...]:
    """The nets of the map among those *described*, under the names that the harness gives to graphs.

    Args:
        io: the map.
        described: nets as the worker or :func:`runtime.description.describe` tells of them, each with its file.
        model: sizes of the reference checkpoint.
        only: names of some nets of the map; None for all.
        types: whether the map's types are those of these nets; of nets compiled from ONNX they are the compiler's.

    Raises:
        MapError: map and file do not agree, or a net of the map is in none of the files.
    """
    found = {net["name"]: (net, file) for net, file in described}
    nets: list[Net] = []
    for name in io.file.nets if only is None else only:
        if name not in found:
            files = ", ".join(dict.fromkeys(file for _, file in described))
            io.refuse(f"expected a net {name} in {files}, found {', '.join(sorted(found))}", f"nets.{name}")
        nets += _Reading(io, name, *found[name], model, types=types).nets()
    return tuple(nets)


class _Reading:
    """One net, read by the map."""

    def __init__(
        self, io: IoMap, name: str, described: Described, file: str, model: ModelShape, *, types: bool
    ) -> None:
        self._io = io
        self._name = name
        self._described = described
        self._file = file
        self._model = model
        self._types = types
        self._where = f"net {name} of {file}"
        self._roles = self._expected()

    def _expected(self) -> list[_Role]:
        """Token and logits first, then every state tensor once, in the order of the map."""
        io = self._io
        roles = [_Role("", io.fed[1].input, io.file.logits.output)]
        for kind, layout in io.layouts.items():
            entry = io.entry(kind)
            for i in range(1 if layout.stacked else self._model.n_layer):
                names = entry.input.replace(LAYER, str(i)), entry.output.replace(LAYER, str(i))
                if not any((role.input, role.output) == names for role in roles):
                    roles.append(_Role(f"states.{kind}", *names))
        states = roles[1:]
        if io.file.order is not Order.KINDS:  # layer by layer; what holds every layer stands where its first would
            per_kind = {
                section: [r for r in states if r.section == section]
                for section in dict.fromkeys(r.section for r in states)
            }
            states = [kind[i] for i in range(self._model.n_layer) for kind in per_kind.values() if i < len(kind)]
        return [roles[0], *(_Role(r.section, r.input, r.output, i) for i, r in enumerate(states))]

    def nets(self) -> list[Net]:
        described = self._described
        if described["is_dynamic"] or described["stages"] != 1:
            self._io.refuse(
                f"{self._where} is dynamic or has several shapes; expected one, fixed", f"nets.{self._name}"
            )
        inputs, outputs = self._ports("input"), self._ports("output")
        rows_taken = self._check_fed(inputs[0])
        vocabulary, rows = self._check_logits(outputs[0])
        states = [self._check_state(role, inputs[i], outputs[i]) for i, role in enumerate(self._roles) if i]
        entry = self._io.file.nets[self._name]
        edge_of = {id(inputs[0]): _TOKENS, id(outputs[0]): _LOGITS}
        number = {
            id(port): role.state for ports in (inputs, outputs) for port, role in zip(ports, self._roles, strict=True)
        }

        def order(ports: Sequence[Port]) -> tuple[str | int, ...]:
            return tuple(edge_of.get(id(port)) or number[id(port)] for port in ports)  # type: ignore[misc]

        return [
            Net(
                name=graph.name,
                bmodel=self._file,
                tokens=entry.tokens,
                vocabulary=vocabulary,
                every_position=rows > 1,
                logits_dtype=Dtype(outputs[0]["dtype"]),
                states=tuple(states),
                addr_mode=described["addr_mode"],
                parts=(Part(self._name, order(described["inputs"]), order(described["outputs"])),),
                edges=((_TOKENS, inputs[0]["bytes"]), (_LOGITS, outputs[0]["bytes"])),
                rows=rows_taken,
                pieces=self._pieces(),
            )
            for graph in graphs_of(self._io, self._name)
        ]

    def _pieces(self) -> tuple[Piece, ...]:
        by_name = {role.input: role.state for role in self._roles}
        found = []
        for layer in range(self._model.n_layer):
            for kind in ("time_mix_shift", "wkv", "channel_mix_shift"):
                name = self._io.entry(kind).input.replace(LAYER, str(layer))
                found.append(self._io.layouts[kind].piece(self._model, state=by_name[name] or 0, layer=layer))
        return tuple(found)

    def _ports(self, end: str) -> list[Port]:
        """The net's inputs or outputs, one for each role."""
        ports: list[Port] = self._described[end + "s"]
        names = [port["name"] for port in ports]
        if self._io.file.order is not None:
            if len(ports) != len(self._roles):
                self._io.refuse(
                    f"{self._where} has {len(ports)} {end}s, but should have {len(self._roles)}: one, and the states "
                    f"of the {self._model.n_layer} layers of the checkpoint. It has {_listed(names)}",
                    f"nets.{self._name}",
                )
            return ports
        chosen = [self._named(ports, role, end) for role in self._roles]
        extra = [port["name"] for port in ports if not any(port is one for one in chosen)]
        if extra:
            self._io.refuse(
                f"{self._where} has {end}s without a role: {_listed(extra)}. The map names those of the "
                f"{self._model.n_layer} layers of the checkpoint",
                f"nets.{self._name}",
            )
        return chosen

    def _named(self, ports: Sequence[Port], role: _Role, end: str) -> Port:
        name = getattr(role, end)
        exact = [port for port in ports if port["name"] == name]
        found = exact or [port for port in ports if re.fullmatch(re.escape(name) + _SUFFIX, port["name"])]
        if len(found) != 1:
            section = role.section or (self._io.fed[0] if end == "input" else "logits")
            there = _listed([port["name"] for port in found or ports])
            self._io.refuse(
                f"{end}: expected one {end} {name!r} in {self._where}, found {there}; "
                'where names do not tell, order = "layers" or "kinds" goes by places',
                section,
                end,
            )
        return found[0]

    def _check_fed(self, port: Port) -> EmbeddingRows | None:
        """What goes in for the tokens; the rows of the embedding where it is these."""
        section, _ = self._io.fed
        if section == "token":
            self._check_token(port)
            return None
        entry = self._io.file.embedding
        expected = (self._io.file.nets[self._name].tokens, self._model.n_embd)
        if _squeezed(port["shape"]) != _squeezed(expected):
            self._io.refuse(
                f"input: expected rows of the embedding, {list(expected)}, apart from axes of 1, found {_show(port)} "
                f"in {self._where}",
                section,
                "input",
            )
        self._check_type(port, entry and entry.dtype, section)
        return EmbeddingRows(self._model.n_embd, Dtype(port["dtype"]))

    def _check_token(self, port: Port) -> None:
        tokens = math.prod(port["shape"])
        wanted = self._io.file.nets[self._name].tokens
        if port["dtype"] != Dtype.I32 or port["bytes"] != 4 * tokens:
            self._io.refuse(f"input: expected I32 tokens, found {_show(port)} in {self._where}", "token", "input")
        if tokens != wanted or tokens != max(port["shape"], default=1):
            self._io.refuse(
                f"tokens: expected [{wanted}], apart from axes of 1, found {_show(port)} in {self._where}",
                f"nets.{self._name}",
                "tokens",
            )

    def _check_logits(self, port: Port) -> tuple[int, int]:
        entry = self._io.file.nets[self._name]
        rows = entry.tokens if entry.logits is Rows.EVERY else 1
        expected = _squeezed((rows, self._model.n_vocab))
        if _squeezed(port["shape"]) != expected or not port["shape"]:
            self._io.refuse(
                f"output: expected logits of {list(expected)}, apart from axes of 1, for logits = "
                f"{entry.logits.value!r} and the checkpoint's vocabulary, found {_show(port)} in {self._where}",
                "logits",
                "output",
            )
        self._check_type(port, self._io.file.logits.dtype, "logits")
        return self._model.n_vocab, rows

    def _check_state(self, role: _Role, taken: Port, given: Port) -> State:
        kinds = [kind for kind in self._io.layouts if self._has(kind, role)]  # several where they share a tensor
        expected: tuple[int, ...] = ()
        for kind in kinds:
            entry, expected = self._io.entry(kind), self._io.layouts[kind].shape(self._model)
            for end, port in (("input", taken), ("output", given)):
                if _squeezed(port["shape"]) != expected:
                    self._io.refuse(
                        f"{end}: expected {list(expected)}, apart from axes of 1, for layout {entry.layout!r} and the "
                        f"checkpoint's sizes, found {_show(port)} in {self._where}",
                        f"states.{kind}",
                        "layout",
                    )
                self._check_type(port, entry.dtype, f"states.{kind}")
        if taken["dtype"] != given["dtype"]:
            self._io.refuse(
                f"expected the same type in and out, found {_show(taken)} and {_show(given)} in {self._where}",
                role.section,
            )
        return State(expected, Dtype(taken["dtype"]))

    def _has(self, kind: str, role: _Role) -> bool:
        pattern = self._io.entry(kind).input
        return any(pattern.replace(LAYER, str(i)) == role.input for i in range(self._model.n_layer))

    def _check_type(self, port: Port, wanted: Any, section: str) -> None:
        floats = {Dtype.F32, Dtype.F16, Dtype.BF16}
        is_right = port["dtype"] in floats and port["bytes"] == math.prod(port["shape"]) * bytes_of(
            Dtype(port["dtype"])
        )
        if is_right and self._types and wanted is not None:
            is_right = Dtype(port["dtype"]).name == wanted.value
        if not is_right:
            expected = wanted.value if wanted is not None and self._types else "F32, F16 or BF16"
            self._io.refuse(f"dtype: expected {expected}, found {_show(port)} in {self._where}", section, "dtype")


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f", and {len(names) - 12} more" if len(names) > 12 else "") or "none"


def _show(port: Mapping[str, Any]) -> str:
    types = {dtype.value: dtype.name for dtype in Dtype}
    return f"{port['name']} {types.get(port['dtype'], port['dtype'])} {list(port['shape'])}"
