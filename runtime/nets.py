"""What an RWKV bmodel's net must look like, and what one is.

A net takes its tokens and n recurrent states, and gives logits and the n next states, in the same order. The compiler
changes the names of inputs and outputs, so only their order tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence  # noqa: TC003
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.binding import Dtype
from runtime.faults import BadBmodel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_DTYPE_NAMES = {dtype.value: dtype.name for dtype in Dtype}
_FLOATS = frozenset({Dtype.F32, Dtype.F16, Dtype.BF16})


@dataclass(frozen=True, slots=True)
class State:
    """Shape and type of one recurrent state."""

    shape: tuple[int, ...]
    dtype: Dtype

    @property
    def size_bytes(self) -> int:
        """Bytes it takes in device memory."""
        return math.prod(self.shape) * bytes_of(self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A net that keeps the contract."""

    name: str
    bmodel: str
    """Path of the file it came from."""
    tokens: int
    """Tokens that one call takes; 1 is a decode net."""
    vocabulary: int
    every_position: bool
    """Whether it gives logits of every position, [tokens, vocabulary], or of the last one."""
    logits_dtype: Dtype
    states: tuple[State, ...]
    addr_mode: int
    """How it was compiled to address inputs and outputs; 0 is the compiler's default, BASIC."""

    @property
    def logits_bytes(self) -> int:
        """Bytes of its logits in device memory."""
        return (self.tokens if self.every_position else 1) * self.vocabulary * bytes_of(self.logits_dtype)


def interpret(described: Mapping[str, Any], bmodel: str) -> Net:
    """Read the worker's description of a net of the file *bmodel*.

    Raises:
        BadBmodel: it breaks the contract; the message says how.
    """
    name = described["name"]
    inputs, outputs = described["inputs"], described["outputs"]

    def expect(*, that: bool, but: str) -> None:
        if not that:
            raise BadBmodel(f"net {name} of {bmodel} {but}")

    expect(that=not described["is_dynamic"], but="is dynamic; compile it statically")
    expect(that=described["stages"] == 1, but=f"has {described['stages']} stages; expected 1")
    expect(
        that=len(inputs) == len(outputs) >= 2,
        but=f"has {len(inputs)} inputs and {len(outputs)} outputs; expected tokens and n states, logits and n states",
    )
    token, logits = inputs[0], outputs[0]
    tokens = math.prod(token["shape"])
    expect(
        that=token["dtype"] == Dtype.I32 and tokens == max(token["shape"], default=1) >= 1,
        but=f"has the first input {_show(token)}; expected tokens, I32 of shape [T], [1] or [1, T]",
    )
    vocabulary = logits["shape"][-1] if logits["shape"] else 0
    rows = math.prod(logits["shape"][:-1])
    expect(
        that=logits["dtype"] in _FLOATS and vocabulary >= 1 and rows in {1, tokens},
        but=f"has the first output {_show(logits)}; expected logits, F32, F16 or BF16 of [V] or [{tokens}, V]",
    )
    for i in range(1, len(inputs)):
        before, after = inputs[i], outputs[i]
        expect(
            that=before["dtype"] in _FLOATS
            and before["dtype"] == after["dtype"]
            and math.prod(before["shape"]) == math.prod(after["shape"]),
            but=f"takes as state {i - 1} {_show(before)} and gives {_show(after)}; expected the same floats back",
        )
    net = Net(
        name=name,
        bmodel=bmodel,
        tokens=tokens,
        vocabulary=vocabulary,
        every_position=rows == tokens,
        logits_dtype=Dtype(logits["dtype"]),
        states=tuple(State(tuple(port["shape"]), Dtype(port["dtype"])) for port in inputs[1:]),
        addr_mode=described["addr_mode"],
    )
    sizes = [4 * tokens, net.logits_bytes, *(2 * [state.size_bytes for state in net.states])]
    sizes_found = [port["bytes"] for port in (token, logits, *inputs[1:], *outputs[1:])]
    expect(that=sizes == sizes_found, but=f"reserves {sizes_found} bytes; expected {sizes}, one for each shape")
    return net


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


def to_floats(data: bytes, dtype: Dtype) -> Floats:
    """Read device bytes of a float type as float32, exactly; one dimension."""
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
    return f"{port['name']} ({dtype} {port['shape']})"


def _show_state(state: State) -> str:
    return f"{state.dtype.name} {list(state.shape)}"
