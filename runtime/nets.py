"""What the nets of an RWKV bmodel must look like, and what one is.

A *whole* net takes its tokens and n recurrent states, and gives logits and the n next states, in the same order. The
compiler changes the names of inputs and outputs, so only their order tells them apart. In place of T tokens it may take
their rows of the embedding, floats of [1, T, C]; the table, [V, C], is then with whoever feeds it. Usually there are
three states a layer: time-mix shift, WKV matrices, channel-mix shift. Where there are two in all, [2 L, 1, C] and
[L H, N, N] with H = C / N, they are those of all L layers, *stacked*: both shifts of each layer, and the matrices.

A model may also come as a net for each *block*, in one file or in many, so that it can be compiled in parts. For T
tokens a call these are

    embed_T       tokens                         -> x
    block_0_T     x, states                      -> x, next states, v_first
    block_<i>_T   x, states, v_first             -> x, next states           i = 1, 2, ... without a gap
    head_T        x                              -> logits

where x are the hidden values and v_first is what block 0 gives to all the others. Each block has its own states, as
many as block 0, at least one. Here the names of the nets do matter. Together they make one :class:`Net`, named
blocks_T; hidden values stay in device memory.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from runtime.binding import Dtype
from runtime.faults import BadBmodel
from runtime.piece import Piece, pieces_of_stacks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_DTYPE_NAMES = {dtype.value: dtype.name for dtype in Dtype}
_FLOATS = frozenset({Dtype.F32, Dtype.F16, Dtype.BF16})

_EMBED, _BLOCK, _HEAD = re.compile(r"embed_(\d+)"), re.compile(r"block_(\d+)_(\d+)"), re.compile(r"head_(\d+)")
_TOKENS, _LOGITS, _V_FIRST = "tokens", "logits", "v_first"
_HIDDEN = ("x_even", "x_odd")  # a block reads one and writes the other


@dataclass(frozen=True, slots=True)
class State:
    """Shape and type of one recurrent state."""

    shape: tuple[int, ...]
    dtype: Dtype

    @property
    def size_bytes(self) -> int:
        """Bytes it takes in device memory."""
        return math.prod(self.shape) * bytes_of(self.dtype)


@dataclass(frozen=True, slots=True)
class EmbeddingRows:
    """What a net takes for each of its tokens where the embedding is not in it: a row of so many floats."""

    width: int
    dtype: Dtype


class Part(NamedTuple):
    """A net of the bmodel, to be launched with these inputs and outputs: an edge's name or a state's number."""

    net: str
    inputs: tuple[str | int, ...]
    outputs: tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A whole net that keeps the contract, or the nets of all blocks, which do so together."""

    name: str
    bmodel: str
    """Path of the file it came from; of the first, where it came from several."""
    tokens: int
    """Tokens that one call takes; 1 is a decode net."""
    vocabulary: int
    every_position: bool
    """Whether it gives logits of every position, [tokens, vocabulary], or of the last one."""
    logits_dtype: Dtype
    states: tuple[State, ...]
    addr_mode: int
    """How it was compiled to address inputs and outputs; 0 is the compiler's default, BASIC."""
    parts: tuple[Part, ...]
    """What is launched, in this order."""
    edges: tuple[tuple[str, int], ...]
    """Names and bytes of the device memory for all that is no state."""
    rows: EmbeddingRows | None = None
    """What it takes in place of tokens; None where it takes these."""
    pieces: tuple[Piece, ...] = ()
    """Where each layer's states lie in its state tensors, of a net with stacked states or another layout than ours."""


def assemble(described: Sequence[tuple[Mapping[str, Any], str]]) -> tuple[Net, ...]:
    """Read the worker's descriptions of nets, each with the path of its bmodel: whole nets and nets of blocks.

    Raises:
        BadBmodel: one breaks the contract, or a net of a block is missing; the message says which.
    """
    parts: dict[int, dict[str, tuple[Mapping[str, Any], str]]] = {}
    nets: list[Net] = []
    for net, bmodel in described:
        name = net["name"]
        found = _EMBED.fullmatch(name) or _BLOCK.fullmatch(name) or _HEAD.fullmatch(name)
        if found:
            parts.setdefault(int(found.groups()[-1]), {})[name] = net, bmodel
        else:
            nets.append(interpret(net, bmodel))
    return (*nets, *(_assemble_blocks(tokens, named) for tokens, named in parts.items()))


def interpret(described: Mapping[str, Any], bmodel: str) -> Net:
    """Read the worker's description of a whole net of the file *bmodel*.

    Raises:
        BadBmodel: it breaks the contract; the message says how.
    """
    name = described["name"]
    inputs, outputs = described["inputs"], described["outputs"]

    def expect(*, that: bool, but: str) -> None:
        _expect(described, bmodel, that=that, but=but)

    _expect_static(described, bmodel)
    expect(
        that=len(inputs) == len(outputs) >= 2,
        but=f"has {len(inputs)} inputs and {len(outputs)} outputs; expected tokens and n states, logits and n states",
    )
    token, logits = inputs[0], outputs[0]
    embedded = rows_of(token)
    tokens = token["shape"][1] if embedded else _tokens(described, bmodel)
    rows = _rows(described, bmodel, tokens)
    _expect_same_floats(described, bmodel, zip(inputs[1:], outputs[1:], strict=True))
    numbers = range(len(inputs) - 1)
    states = tuple(_state(port) for port in inputs[1:])
    return Net(
        name=name,
        bmodel=bmodel,
        tokens=tokens,
        vocabulary=logits["shape"][-1],
        every_position=rows == tokens,
        logits_dtype=Dtype(logits["dtype"]),
        states=states,
        addr_mode=described["addr_mode"],
        parts=(Part(name, (_TOKENS, *numbers), (_LOGITS, *numbers)),),
        edges=((_TOKENS, token["bytes"]), (_LOGITS, logits["bytes"])),
        rows=embedded,
        pieces=pieces_of_stacks([state.shape for state in states]),
    )


def rows_of(port: Mapping[str, Any]) -> EmbeddingRows | None:
    """The rows of the embedding that an input of floats [1, T, C] holds; None of any other."""
    shape = port["shape"]
    if port["dtype"] not in _FLOATS or len(shape) != 3 or shape[0] != 1 or port["bytes"] != _size_bytes(port):
        return None
    return EmbeddingRows(shape[2], Dtype(port["dtype"])) if min(shape) >= 1 else None


def _assemble_blocks(tokens: int, named: Mapping[str, tuple[Mapping[str, Any], str]]) -> Net:
    """One net of the nets of all blocks for *tokens* tokens a call."""
    count = sum(_BLOCK.fullmatch(name) is not None for name in named)
    wanted = [f"embed_{tokens}", *(f"block_{i}_{tokens}" for i in range(max(count, 1))), f"head_{tokens}"]
    missing = [name for name in wanted if name not in named]
    if missing:
        raise BadBmodel(f"of the nets for {tokens} tokens, {sorted(named)}, these are missing: {missing}")
    embed, *blocks, head = (named[name] for name in wanted)
    for net, bmodel in (embed, *blocks, head):
        _expect_static(net, bmodel)

    def expect_count(net: Mapping[str, Any], bmodel: str, inputs: int, outputs: int) -> None:
        found = len(net["inputs"]), len(net["outputs"])
        but = f"has {found[0]} inputs and {found[1]} outputs; expected {inputs} and {outputs}"
        _expect(net, bmodel, that=found == (inputs, outputs), but=but)

    expect_count(*embed, 1, 1)
    expect_count(*head, 1, 1)
    x = embed[0]["outputs"][0]
    of_each = len(blocks[0][0]["inputs"]) - 1
    _expect(*blocks[0], that=of_each >= 1, but="has no states; expected hidden values and at least one state")
    expect_count(*blocks[0], 1 + of_each, 2 + of_each)
    v_first = blocks[0][0]["outputs"][-1]
    parts = [Part(wanted[0], (_TOKENS,), (_HIDDEN[0],))]
    states: list[State] = []
    for i, (net, bmodel) in enumerate(blocks):
        inputs, outputs = net["inputs"], net["outputs"]
        numbers = range(len(states), len(states) + of_each)
        before, after = _HIDDEN[i % 2], _HIDDEN[(i + 1) % 2]
        pairs = [(x, inputs[0]), (x, outputs[0])]
        if i == 0:
            parts.append(Part(wanted[1], (before, *numbers), (after, *numbers, _V_FIRST)))
        else:
            expect_count(net, bmodel, 2 + of_each, 1 + of_each)
            pairs.append((v_first, inputs[-1]))
            parts.append(Part(wanted[1 + i], (before, *numbers, _V_FIRST), (after, *numbers)))
        ports = slice(1, 1 + of_each)
        _expect_same_floats(net, bmodel, [*pairs, *zip(inputs[ports], outputs[ports], strict=True)])
        states += [_state(port) for port in inputs[ports]]
    _expect_same_floats(*head, [(x, head[0]["inputs"][0])])
    parts.append(Part(wanted[-1], (_HIDDEN[count % 2],), (_LOGITS,)))
    tokens_found = _tokens(*embed)
    _expect(*embed, that=tokens_found == tokens, but=f"takes {tokens_found} tokens; expected {tokens}, as in its name")
    logits = head[0]["outputs"][0]
    rows = _rows(*head, tokens)
    return Net(
        name=f"blocks_{tokens}",
        bmodel=embed[1],
        tokens=tokens,
        vocabulary=logits["shape"][-1],
        every_position=rows == tokens,
        logits_dtype=Dtype(logits["dtype"]),
        states=tuple(states),
        addr_mode=max(net["addr_mode"] for net, _ in (embed, *blocks, head)),
        parts=tuple(parts),
        edges=(
            (_TOKENS, embed[0]["inputs"][0]["bytes"]),
            (_LOGITS, logits["bytes"]),
            *((name, x["bytes"]) for name in _HIDDEN),
            (_V_FIRST, v_first["bytes"]),
        ),
    )


def _expect(described: Mapping[str, Any], bmodel: str, *, that: bool, but: str) -> None:
    if not that:
        raise BadBmodel(f"net {described['name']} of {bmodel} {but}")


def _expect_static(described: Mapping[str, Any], bmodel: str) -> None:
    stages = described["stages"]
    _expect(described, bmodel, that=not described["is_dynamic"], but="is dynamic; compile it statically")
    _expect(
        described,
        bmodel,
        that=stages == 1,
        but=f"has {stages} stages, one for each shape; expected 1: before combining, give each shape its own net name",
    )


def _tokens(described: Mapping[str, Any], bmodel: str) -> int:
    """How many tokens the first input holds."""
    token = described["inputs"][0]
    tokens: int = math.prod(token["shape"])
    _expect(
        described,
        bmodel,
        that=token["dtype"] == Dtype.I32
        and tokens == max(token["shape"], default=1) >= 1
        and token["bytes"] == 4 * tokens,
        but=f"has the first input {_show(token)}; expected tokens, I32 of shape [T], [1] or [1, T], or rows of the "
        "embedding, floats of [1, T, C]",
    )
    return tokens


def _rows(described: Mapping[str, Any], bmodel: str, tokens: int) -> int:
    """How many positions the first output holds logits of."""
    logits = described["outputs"][0]
    rows: int = math.prod(logits["shape"][:-1])
    _expect(
        described,
        bmodel,
        that=logits["dtype"] in _FLOATS
        and math.prod(logits["shape"][-1:]) >= 1
        and len(logits["shape"]) >= 1
        and rows in {1, tokens}
        and logits["bytes"] == _size_bytes(logits),
        but=f"has the first output {_show(logits)}; expected logits, F32, F16 or BF16 of [V] or [{tokens}, V]",
    )
    return rows


def _expect_same_floats(
    described: Mapping[str, Any], bmodel: str, pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> None:
    """What is given and what is taken must be the same bytes, though axes of length 1 may come and go."""
    for one, other in pairs:
        _expect(
            described,
            bmodel,
            that=one["dtype"] in _FLOATS
            and one["dtype"] == other["dtype"]
            and math.prod(one["shape"]) == math.prod(other["shape"])
            and one["bytes"] == other["bytes"] == _size_bytes(one),
            but=f"does not fit: {_show(one)} and {_show(other)} should be the same floats",
        )


def _state(port: Mapping[str, Any]) -> State:
    return State(tuple(port["shape"]), Dtype(port["dtype"]))


def _size_bytes(port: Mapping[str, Any]) -> int:
    return _state(port).size_bytes


def check_agreement(nets: Sequence[Net]) -> None:
    """See that a state can pass from any of *nets* to any other.

    Raises:
        BadBmodel: two of them differ in vocabulary, number, shape or type of states.
    """
    for net in nets[1:]:
        first = nets[0]
        both = f"{first.name} of {first.bmodel} and {net.name} of {net.bmodel}"
        if net.vocabulary != first.vocabulary:
            raise BadBmodel(f"{both} differ in vocabulary: {first.vocabulary} and {net.vocabulary}")
        if len(net.states) != len(first.states):
            raise BadBmodel(f"{both} differ in number of states: {len(first.states)} and {len(net.states)}")
        for i, (one, other) in enumerate(zip(first.states, net.states, strict=True)):
            if one != other:
                raise BadBmodel(f"{both} differ in state {i}: {_show_state(one)} and {_show_state(other)}")


def bytes_of(dtype: Dtype) -> int:
    """Bytes of one element of a float type of the contract."""
    return 4 if dtype is Dtype.F32 else 2


def to_floats(data: bytes | memoryview, dtype: Dtype) -> Floats:
    """Read device bytes of a float type as float32, exactly; one dimension, and a copy."""
    if dtype is Dtype.BF16:
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, "<f2" if dtype is Dtype.F16 else "<f4").astype(np.float32)


def from_floats(values: Floats, dtype: Dtype) -> bytes:
    """Write float32 values as device bytes, rounded to nearest, ties to even; too large a value becomes infinite."""
    if dtype is Dtype.F16:
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    if dtype is Dtype.BF16:
        bits = np.ascontiguousarray(values, "<f4").view("<u4")
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet_nan = (bits >> 16) | 0x40
        return np.where(np.isnan(values), quiet_nan, rounded).astype("<u2").tobytes()
    return values.astype("<f4").tobytes()


def _show(port: Mapping[str, Any]) -> str:
    dtype = _DTYPE_NAMES.get(port["dtype"], f"unknown type {port['dtype']}")
    return f"{port['name']} ({dtype} {port['shape']}, {port['bytes']} bytes)"


def _show_state(state: State) -> str:
    return f"{state.dtype.name} {list(state.shape)}"
