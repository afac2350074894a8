"""The process that holds the vendor libraries: ``python -m runtime.worker``. Runs on Python 3.8 without packages.

Requests come on standard input, replies go to standard output, one for one, as runtime.framing describes; payloads
take the way through runtime.window where there is one. Whatever the libraries print goes to standard error. The
worker ends when its input ends or its parent dies.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import platform
import select
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime import cmodel, faults, window
from runtime.bmodel import check_is_bmodel
from runtime.device import Device
from runtime.framing import Message, encode, receive
from runtime.waiting import ready

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.binding import DeviceMem
    from runtime.device import Launch

_PR_SET_PDEATHSIG = 1
_SIGN_OF_LIFE_EVERY_S = 1.0
_AT_ONCE_BYTES = 1 << 16


class _Part(NamedTuple):
    """A net to be launched, and what it reads and writes: an edge's name or a state's number."""

    net: str
    inputs: list[str | int]
    outputs: list[str | int]


class _Chain(NamedTuple):
    """What turns tokens into logits: one net, or several in a row that pass hidden values on in device memory.

    The edges are the pieces of memory that are no state: "tokens", ids or their rows of the embedding, "logits" and the
    hidden values. All sessions share them, as only one of them is served at a time.
    """

    edges: dict[str, DeviceMem]
    parts: list[_Part]


class _States:
    """The recurrent state of one session: two sets of memory, of which every launch reads one and writes the other.

    Reading and writing one and the same set is safe in one of the addressing modes that a net may be compiled with;
    two sets are safe in all of them, at the price of one more state's memory.
    """

    def __init__(self, device: Device, sizes_bytes: Sequence[int]) -> None:
        self._device = device
        self._sets: tuple[list[DeviceMem], list[DeviceMem]] = ([], [])
        self._turn = 0
        self._launches: dict[tuple[str, int], list[Launch]] = {}
        try:
            for pieces in self._sets:
                pieces += [device.allocate(size) for size in sizes_bytes]
        except BaseException:
            self.free()
            raise

    @property
    def now(self) -> list[DeviceMem]:
        return self._sets[self._turn]

    def clear(self) -> None:
        for memory in self.now:
            self._device.write(memory, bytes(memory.size))

    def write(self, data: Sequence[bytes | memoryview]) -> None:
        for i, memory in enumerate(self.now):
            self._device.write(memory, data[i])

    def copy(self, other: _States) -> None:
        for i, memory in enumerate(self.now):
            self._device.copy(other.now[i], memory)
        self._device.synchronise()

    def run(self, name: str, chain: _Chain) -> float:
        """Call a chain and go on with the states it gave; seconds of wall time."""
        launches = self._launches.get((name, self._turn))
        if launches is None:
            launches = self._launches[name, self._turn] = self._bind(chain)
        seconds = self._device.run(launches)
        self._turn = 1 - self._turn
        return seconds

    def _bind(self, chain: _Chain) -> list[Launch]:
        def pieces(names: list[str | int], states: list[DeviceMem]) -> list[DeviceMem]:
            return [states[name] if isinstance(name, int) else chain.edges[name] for name in names]

        after = self._sets[1 - self._turn]
        return [
            self._device.bind(part.net, pieces(part.inputs, self.now), pieces(part.outputs, after))
            for part in chain.parts
        ]

    def free(self) -> None:
        for pieces in self._sets:
            while pieces:
                self._device.free(pieces.pop())


class Worker:
    """Answers requests with one device."""

    def __init__(self, shared: window.Window | None = None) -> None:
        self._window = shared
        self._device: Device | None = None
        self._chains: dict[str, _Chain] = {}
        self._sessions: dict[int, _States] = {}
        self._next_session = 0
        self._requests: dict[str, Callable[..., Message]] = {
            "hello": self._hello,
            "check": self._check,
            "open": self._open,
            "load": self._load,
            "prepare": self._prepare,
            "start": self._start,
            "fork": self._fork,
            "clear": self._clear,
            "write": self._write,
            "run": self._run,
            "read": self._read,
            "call": self._call,
            "computed": self._computed,
            "memory": self._memory,
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

    def _hello(self, _: Sequence[Any]) -> Message:
        """Say whether payloads may come through the window."""
        return Message({"window": self._window is not None, "python": platform.python_version()}, [])

    @staticmethod
    def _check(_: Sequence[Any], bmodel: str) -> Message:
        """See that a file is a bmodel; before a device is open."""
        check_is_bmodel(Path(bmodel))
        return Message({}, [])

    def _open(self, _: Sequence[Any], *, folder: str, device: int, simulated: bool, scratch: str | None) -> Message:
        """Load the libraries and open a device."""
        given = Path(folder)
        with cmodel.linked_libraries(given, scratch) if simulated else nullcontext(given) as libraries:
            self._device = Device(libraries, device, simulated=simulated)
            return Message({"versions": self._device.versions()}, [])

    def _load(self, _: Sequence[Any], bmodel: str) -> Message:
        """Load a bmodel."""
        return Message({"remark": self._opened.remark(Path(bmodel)), "nets": self._opened.load(Path(bmodel))}, [])

    def _prepare(self, _: Sequence[Any], net: str, edges: dict[str, int], parts: list[list[Any]]) -> Message:
        """Allocate the memory for a chain's edges, of so many bytes each."""
        pieces = {name: self._opened.allocate(size) for name, size in edges.items()}
        self._chains[net] = _Chain(pieces, [_Part(*part) for part in parts])
        return Message({}, [])

    def _start(self, _: Sequence[Any], sizes_bytes: list[int]) -> Message:
        """Start a session with the zero state."""
        states = _States(self._opened, sizes_bytes)
        session = self._add(states)
        states.clear()
        return Message({"session": session}, [])

    def _fork(self, _: Sequence[Any], session: int) -> Message:
        """Start a session with a copy of another one's state."""
        original = self._sessions[session]
        states = _States(self._opened, [memory.size for memory in original.now])
        try:
            states.copy(original)
        except BaseException:
            states.free()
            raise
        return Message({"session": self._add(states)}, [])

    def _add(self, states: _States) -> int:
        session = self._next_session
        self._sessions[session] = states
        self._next_session += 1
        return session

    def _end(self, _: Sequence[Any], session: int) -> Message:
        """End a session."""
        self._sessions.pop(session).free()
        return Message({}, [])

    def _clear(self, _: Sequence[Any], session: int) -> Message:
        """Set a session's state to zero."""
        self._sessions[session].clear()
        return Message({}, [])

    def _write(self, payloads: Sequence[Any], session: int) -> Message:
        """Write a session's state."""
        self._sessions[session].write(payloads)
        return Message({}, [])

    def _read(self, _: Sequence[Any], session: int) -> Message:
        """Read a session's state."""
        return self._reply({}, self._sessions[session].now)

    def _run(self, payloads: Sequence[Any], session: int, net: str) -> Message:
        """Feed tokens through a chain, and a session's state with them."""
        chain = self._chains[net]
        self._opened.write(chain.edges["tokens"], payloads[0])
        seconds = self._sessions[session].run(net, chain)
        return self._reply({"seconds": seconds}, [chain.edges["logits"]])

    def _call(self, payloads: Sequence[Any], *, net: str, sizes_bytes: list[int]) -> Message:
        """Launch any net once, from payloads to a reply; *sizes_bytes* are those of its outputs."""
        device, pieces = self._opened, []
        try:
            for size in (*map(len, payloads), *sizes_bytes):
                pieces.append(device.allocate(size))  # noqa: PERF401 - those before a failure are freed, too
            inputs, outputs = pieces[: len(payloads)], pieces[len(payloads) :]
            for memory, data in zip(inputs, payloads):  # noqa: B905 - Python 3.8
                device.write(memory, data)
            seconds = device.run([device.bind(net, inputs, outputs)])
            return self._reply({"seconds": seconds}, outputs)
        finally:
            for memory in pieces:
                device.free(memory)

    def _computed(self, _: Sequence[Any]) -> Message:
        """Tell how long the chip has computed."""
        return Message({"seconds": self._opened.computed_s()}, [])

    def _memory(self, _: Sequence[Any]) -> Message:
        """Tell how much memory is in use on the device, and at most was in this process."""
        return Message({"device_bytes": self._opened.memory_used_bytes(), "host_peak_bytes": _peak_bytes()}, [])

    def _reply(self, fields: dict[str, Any], pieces: Sequence[DeviceMem]) -> Message:
        """Read device memory to where the reply's payloads go: into the window at once, if there is one."""
        sizes = [memory.size for memory in pieces]
        places = self._window.places(sizes) if self._window is not None else None
        if places is None:
            places = [memoryview(bytearray(size)) for size in sizes]
        for memory, place in zip(pieces, places):  # noqa: B905 - Python 3.8
            self._opened.read(memory, place)
        return Message(fields, places)

    def close(self, _: Sequence[Any] = ()) -> Message:
        """Give everything back."""
        if self._device is not None:
            self._device.close()
            self._device = None
        return Message({}, [])


class _Replies:
    """The way to the caller. While a request is being carried out, it also takes a sign of life every second.

    The sign comes from a thread, so it comes also while a library call does not return; it ceases when the process is
    stopped or gets no processor time.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._busy = False
        self._lock = threading.Lock()
        threading.Thread(target=self._show_life, daemon=True).start()

    def begin(self) -> None:
        """A request has come."""
        self._busy = True

    def send(self, data: bytes) -> None:
        """Send the reply."""
        with self._lock:
            self._busy = False
            _write_all(self._descriptor, data)

    def _show_life(self) -> None:
        alive = encode({"alive": True})
        try:
            while True:
                time.sleep(_SIGN_OF_LIFE_EVERY_S)
                with self._lock:
                    if self._busy:
                        _write_all(self._descriptor, alive)
        except OSError:  # nobody listens any more; the end of the input tells the main thread
            return


def main() -> None:
    """Serve standard input until it ends."""
    requests, replies = _take_over_standard_streams()
    _die_with_parent()
    faulthandler.enable(all_threads=False)  # more would push the library's own words out of the last ones
    shared = window.inherited()
    worker = Worker(shared)
    way_back = _Replies(replies)
    read = _reader(requests)
    try:
        while True:
            request = receive(read, shared)
            way_back.begin()
            reply = worker.answer(request)
            way_back.send(encode(reply.fields, reply.payloads, shared))
    except EOFError:
        worker.close()


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


def _peak_bytes() -> int:
    """The most memory that was resident. Not getrusage's: that begins with the peak of whoever started us."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def _die_with_parent() -> None:
    """Also while a library hangs; a parent that is dead already shows as the end of the input."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _reader(descriptor: int) -> Callable[[int], bytes]:
    """Read from *descriptor* exactly as many bytes as wanted, with as few calls of the kernel as possible."""
    waiting = bytearray()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)

    def read(count: int) -> bytes:
        while len(waiting) < count:
            ready(poll, None)
            part = os.read(descriptor, max(count - len(waiting), _AT_ONCE_BYTES))
            if not part:
                raise EOFError
            waiting.extend(part)
        wanted = bytes(waiting[:count])
        del waiting[:count]
        return wanted

    return read


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    main()
