"""The process that holds the vendor libraries: ``python -m runtime.worker``. Runs on Python 3.8 without packages.

Requests come on standard input, replies go to standard output, one for one, as runtime.framing describes. Whatever
the libraries print goes to standard error. The worker ends when its input ends or its parent dies.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import faults
from runtime.bmodel import check_is_bmodel
from runtime.device import Device
from runtime.framing import Message, encode, receive

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.binding import DeviceMem

_PR_SET_PDEATHSIG = 1


class _States:
    """The recurrent state of one session: two sets of memory, of which every launch reads one and writes the other.

    Reading and writing one and the same set is safe in one of the addressing modes that a net may be compiled with;
    two sets are safe in all of them, at the price of one more state's memory.
    """

    def __init__(self, device: Device, sizes_bytes: list[int]) -> None:
        self._device = device
        self.now = [device.allocate(size) for size in sizes_bytes]
        self.next = [device.allocate(size) for size in sizes_bytes]

    def write(self, data: list[bytes]) -> None:
        for i, memory in enumerate(self.now):
            self._device.write(memory, data[i])

    def read(self) -> list[bytes]:
        return [bytes(self._device.read(memory)) for memory in self.now]

    def step(self) -> None:
        self.now, self.next = self.next, self.now

    def free(self) -> None:
        for memory in self.now + self.next:
            self._device.free(memory)


class Worker:
    """Answers requests with one device."""

    def __init__(self) -> None:
        self._device: Device | None = None
        self._edges: dict[str, tuple[DeviceMem, DeviceMem]] = {}
        self._sessions: dict[int, _States] = {}
        self._next_session = 0
        self._requests: dict[str, Callable[..., Message]] = {
            "check": self._check,
            "open": self._open,
            "load": self._load,
            "prepare": self._prepare,
            "start": self._start,
            "write": self._write,
            "run": self._run,
            "read": self._read,
            "end": self._end,
            "close": self.close,
        }

    def answer(self, request: Message) -> Message:
        """Carry out *request*; faults become replies."""
        fields = dict(request.fields)
        try:
            return self._requests[fields.pop("do")](request.payloads, **fields)
        except faults.RuntimeFault as fault:
            return Message({"fault": type(fault).__name__, "message": str(fault), "details": vars(fault)}, [])

    @property
    def _opened(self) -> Device:
        if self._device is None:
            raise faults.RuntimeFault("no device is open")
        return self._device

    @staticmethod
    def _check(_: list[bytes], bmodel: str) -> Message:
        """See that a file is a bmodel; before a device is open."""
        check_is_bmodel(Path(bmodel))
        return Message({}, [])

    def _open(self, _: list[bytes], *, folder: str, device: int, simulated: bool) -> Message:
        """Load the libraries and open a device."""
        self._device = Device(Path(folder), device, simulated=simulated)
        return Message({"versions": self._device.versions()}, [])

    def _load(self, _: list[bytes], bmodel: str) -> Message:
        """Load a bmodel."""
        return Message({"nets": self._opened.load(Path(bmodel))}, [])

    def _prepare(self, _: list[bytes], net: str, token_bytes: int, logits_bytes: int) -> Message:
        """Allocate the memory for a net's tokens and logits; all sessions share it."""
        self._edges[net] = (self._opened.allocate(token_bytes), self._opened.allocate(logits_bytes))
        return Message({}, [])

    def _start(self, _: list[bytes], sizes_bytes: list[int]) -> Message:
        """Start a session; its state is yet to be written."""
        session = self._next_session
        self._sessions[session] = _States(self._opened, sizes_bytes)
        self._next_session += 1
        return Message({"session": session}, [])

    def _end(self, _: list[bytes], session: int) -> Message:
        """End a session."""
        self._sessions.pop(session).free()
        return Message({}, [])

    def _write(self, payloads: list[bytes], session: int) -> Message:
        """Write a session's state."""
        self._sessions[session].write(payloads)
        return Message({}, [])

    def _read(self, _: list[bytes], session: int) -> Message:
        """Read a session's state."""
        return Message({}, self._sessions[session].read())

    def _run(self, payloads: list[bytes], session: int, net: str) -> Message:
        """Feed tokens through a net, and a session's state with them."""
        tokens, logits = self._edges[net]
        states = self._sessions[session]
        self._opened.write(tokens, payloads[0])
        seconds = self._opened.launch(net, [tokens, *states.now], [logits, *states.next])
        states.step()
        return Message({"seconds": seconds}, [bytes(self._opened.read(logits))])

    def close(self, _: list[bytes]) -> Message:
        """Give everything back."""
        if self._device is not None:
            self._device.close()
            self._device = None
        return Message({}, [])


def main() -> None:
    """Serve standard input until it ends."""
    requests, replies = _take_over_standard_streams()
    _die_with_parent()
    faulthandler.enable()
    worker = Worker()
    try:
        while True:
            reply = worker.answer(receive(_reader(requests)))
            _write_all(replies, encode(reply.fields, reply.payloads))
    except EOFError:
        worker.close([])


def _take_over_standard_streams() -> tuple[int, int]:
    """Keep the pipes for ourselves; leave the libraries an empty input, and the log for all they print."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    libc = ctypes.CDLL(None)
    unbuffered = 2  # _IONBF: an abort would lose what is in the buffer, and that is the reason of the abort
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, unbuffered, ctypes.c_size_t(0))
    return requests, replies


def _die_with_parent() -> None:
    """Also while a library hangs; a parent that is dead already shows as the end of the input."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _reader(descriptor: int) -> Callable[[int], bytes]:
    def read(count: int) -> bytes:
        parts = []
        while count:
            part = os.read(descriptor, count)
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    return read


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    main()
