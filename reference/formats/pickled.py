"""What the pickle inside a torch file says, found out without running it.

A pickle is a program. This interpreter knows the instructions that files of tensors use; a call is written down, not
made. Anything else is refused, so nothing that a file holds is ever imported, called or allocated at its wish.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reference.shape import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
_DICTIONARY = "collections.OrderedDict"


@dataclass(frozen=True, slots=True)
class Name:
    """A name that the pickle would import."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the pickle would make: of :data:`TENSOR` or :data:`PARAMETER`."""

    function: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Outside:
    """A reference to something outside the pickle: a storage."""

    identity: object


def read(program: bytes, path: Path) -> tuple[Any, int]:
    """Interpret the pickle at the start of *program*.

    Args:
        program: bytes that begin with a pickle; what follows it is left alone.
        path: what to call the file in an error.

    Returns:
        What it describes (dictionaries, lists, tuples, text, integers, and the dataclasses above), and its length.

    Raises:
        CheckpointError: truncated or damaged, or it does what no file of tensors does.
    """
    stream = io.BytesIO(program)
    machine = _Machine(path)
    try:
        for opcode, argument, position in pickletools.genops(stream):
            machine.step(opcode.name, argument, position)
        value = machine.stack.pop()
    # genops raises ValueError; a damaged program finds the stack empty or of other types.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: its pickle is truncated or damaged ({type(error).__name__}); a dictionary of tensors is expected"
        ) from error
    return value, stream.tell()


class _Machine:
    """The pickle machine's stack and memo; what a damaged program does to them ends in Python's own errors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any, position: int | None) -> None:
        """Carry out one instruction."""
        if opcode not in _STEPS:
            raise CheckpointError(
                f"{self._path}: its pickle has the instruction {opcode} at byte {position}; files of tensors do without"
            )
        _STEPS[opcode](self, argument)

    def nothing(self, _: Any) -> None:
        """Framing."""

    def push(self, value: Any) -> None:
        """A value that stands in the program."""
        self.stack.append(value)

    def remember(self, index: int | None) -> None:
        """Note the top of the stack in the memo."""
        self._memo[len(self._memo) if index is None else index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Push what was noted."""
        self.stack.append(self._memo[index])

    def tuple_of(self, count: int) -> None:
        """Gather the last *count* values."""
        parts = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(parts)

    def since_mark(self) -> list[Any]:
        """Take the values since the last mark, and the mark."""
        parts = []
        while (top := self.stack.pop()) is not _MARK:
            parts.append(top)
        return parts[::-1]

    def extend(self, parts: list[Any]) -> None:
        """Append to the list on top."""
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(parts)

    def set_items(self, parts: list[Any]) -> None:
        """Put keys and values into the dictionary on top."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            # Only text: to hash nested tuples can be made to take for ever.
            if not isinstance(key, str):
                raise CheckpointError(
                    f"{self._path}: a dictionary in it has a {type(key).__name__} as key, but should have names as keys"
                )
            if key in target:
                raise CheckpointError(f"{self._path}: {key[:80]!a} occurs twice, but should occur once")
            target[key] = value

    def name(self, module: Any, name: Any) -> None:
        """Something that would be imported."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        self.stack.append(Name(f"{module}.{name}"))

    def call(self, _: Any) -> None:
        """Note a call; only calls that rebuild tensors are let through, and an empty dictionary is what it is."""
        arguments, function = self.stack.pop(), self.stack.pop().name
        if function == _DICTIONARY and arguments == ():
            self.stack.append({})
        elif function in {TENSOR, PARAMETER}:
            self.stack.append(Call(function, arguments))
        else:
            raise CheckpointError(
                f"{self._path}: its pickle calls {function[:80]!a}, but files of plain tensors call {TENSOR} alone. "
                "Nothing was called; sparse, quantised and other objects are not read"
            )

    def attributes(self, _: Any) -> None:
        """Drop a dictionary's attributes: torch's modules leave the versions of their parts there."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise TypeError


_MARK = object()

_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.nothing,
    "FRAME": _Machine.nothing,
    "STOP": _Machine.nothing,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "BININT": _Machine.push,
    "BININT1": _Machine.push,
    "BININT2": _Machine.push,
    "LONG1": _Machine.push,
    "BINUNICODE": _Machine.push,
    "BINUNICODE8": _Machine.push,
    "SHORT_BINUNICODE": _Machine.push,
    "MEMOIZE": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "MARK": lambda machine, _: machine.push(_MARK),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ")),
    "STACK_GLOBAL": lambda machine, _: machine.name(machine.stack.pop(-2), machine.stack.pop()),
    "BINPERSID": lambda machine, _: machine.push(Outside(machine.stack.pop())),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.attributes,
}
"""What each known instruction does, given the machine and the instruction's argument."""
