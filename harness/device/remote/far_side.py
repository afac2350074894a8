"""What runs on the distant machine. Python 3.8, no packages, one file: its text is sent over the connection.

It is started with the name of one action, and takes what the action needs as one line of JSON from standard input
(those that are run from the package: as an argument). Replies are lines of JSON behind a mark, because shells
print greetings. Every action ends when its keeper does, so nothing outlives a connection.

The keeper is the first command of a connection and lives as long as it: it ends with its input, or when its input
falls silent, which is how a cut that no packet tells of is noticed. It listens on an abstract socket, and the kernel
closes that whatever the keeper dies of. The keeper also holds the board's lock.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import hashlib
import importlib
import json
import os
import platform
import pwd
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "rwkv-tpu-reply "
BOARD_IN_USE = 75  # exit code; the worker itself never ends with it
KEEPER_GONE = 76

SILENCE_S = 90
"""A keeper that hears nothing for so long takes the connection for dead."""

_LOCK_WITHIN_S = 5.0
_LAST_WORDS_WITHIN_S = 5.0
_PR_SET_PDEATHSIG = 1
_LOCK = "tmp/rwkv-tpu-board-{number}.lock"  # as harness.device.lock names it on a board of its own machine
_WANTS_LOCK = b"l"
_SPARE_BYTES = 16 << 20
_PIECE_BYTES = 1 << 20
_TEXT_BYTES = 4096
_SIMULATOR_SIGN = b"libcmodel.so"  # see harness.device.board


def keep(token: str, cache: str, number: int, libsophon: str | None, root: str, silence_s: float = SILENCE_S) -> None:
    """Tell what is here, and then live as long as the connection does.

    Args:
        token: names this client, also over several connections; an older keeper of the same name has to go.
        cache: where files are to be kept.
        number: of the board.
        libsophon: its folder of libraries, or the folder above; None for the usual one.
        root: where the file system begins, for tests.
        silence_s: after so long without a byte the connection counts as dead.
    """
    listener = _listen(token)
    folder = Path(cache).expanduser()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = _board(number, libsophon, Path(root))
    _reply(python=platform.python_version(), system=platform.platform(), cache=str(folder), **found)
    lock: int | None = None
    guests: dict[int, socket.socket] = {}
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(listener, select.POLLIN)
    heard = time.monotonic()
    while time.monotonic() - heard < silence_s:
        for ready, _ in poll.poll(1000 * silence_s / 4):
            if ready == 0:
                if not os.read(0, _PIECE_BYTES):
                    return
                heard = time.monotonic()
            elif ready == listener.fileno():
                guest, _ = listener.accept()
                guests[guest.fileno()] = guest  # while it is open, it sees us live
                poll.register(guest, select.POLLIN)
            else:
                guest = guests[ready]
                if _peer(guest)[1] == os.getuid() and guest.recv(1) == _WANTS_LOCK:
                    try:
                        lock = _lock(Path(root) / _LOCK.format(number=number)) if lock is None else lock
                        _send_descriptor(guest, lock)
                        continue
                    except BlockingIOError as error:
                        guest.sendall(str(error).encode())
                poll.unregister(guest)
                guests.pop(ready).close()


def receive(token: str, path: str, size: int, sha256: str) -> None:
    """Take a file's bytes from standard input, from where an earlier try was cut off.

    It gets its name once its hash is right. The first reply is ``{"have": bytes}``; the rest is then expected. The
    last is ``{"done": true}``, or ``false`` where the hash was wrong and everything was thrown away.
    """
    _end_with_keeper(token)
    whole, part = Path(path), Path(path + ".part")
    if _is(whole, size, sha256):
        _reply(have=size)
        _reply(done=True)
        return
    file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    _wait_for_lock(file, "another process is receiving this file")
    have = os.fstat(file).st_size
    if have > size:
        os.ftruncate(file, 0)
        have = 0
    room = os.fstatvfs(file)
    free = room.f_bavail * room.f_frsize
    if free < size - have + _SPARE_BYTES:
        _reply(error="space", free=free)
        return
    _reply(have=have)
    os.lseek(file, have, os.SEEK_SET)
    while have < size:
        piece = os.read(0, min(_PIECE_BYTES, size - have))
        if not piece:
            return  # cut off
        have += len(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(file, view) :]
    done = _is(part, size, sha256)
    if done:
        os.fsync(file)
        part.replace(whole)
    else:
        os.ftruncate(file, 0)
    _reply(done=done)


def read(token: str, kind: str, number: int, root: str) -> None:
    """Reply with what the board tells of itself: ``{"readings": [...]}``, see harness.device.sensors."""
    _end_with_keeper(token)
    sensors = importlib.import_module("sensors")  # beside this file in the package
    _reply(readings=sensors.read(kind, number, root))


def work(token: str, package: str, number: int) -> None:
    """Run the worker in the zip file *package*, with our standard streams, as long as the keeper lives.

    The worker inherits two locks. The board's is free again when keeper and worker both have ended. The other is its
    own: a client that gave up on a worker can start the next only when that one is gone.
    """
    keeper = _find_keeper(token)
    keeper.sendall(_WANTS_LOCK)
    lock = _receive_descriptor(keeper)
    turn = os.open(Path(package).with_name(f"worker-{number}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        _wait_for_lock(turn, "", 2 * _LAST_WORDS_WITHIN_S)
    except BlockingIOError:
        _say(f"board {number} is not free: an older worker of this user does not end")
        sys.exit(BOARD_IN_USE)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    worker = subprocess.Popen(
        [sys.executable, "-m", "runtime.worker"],
        # Temporary files too go where the copies are: a worker that is killed has no time to clean up.
        env={**os.environ, "PYTHONPATH": package, "TMPDIR": str(Path(package).parent)},
        cwd="/",
        pass_fds=[lock, turn],
    )
    threading.Thread(target=_end_when_unwanted, args=(worker, keeper), daemon=True).start()
    code = worker.wait()
    if code < 0:
        _say(f"the worker was killed by {signal.Signals(-code).name}")
        code = 128 - code
    os._exit(code)  # the thread may be blocked; nothing is left to tidy up


def _end_when_unwanted(worker: subprocess.Popen[bytes], keeper: socket.socket) -> None:
    """Kill the worker once the keeper has ended, or when its input has and it does not end by itself."""
    poll = select.poll()
    poll.register(0, select.POLLRDHUP)  # and POLLHUP, which is always told
    poll.register(keeper, select.POLLIN)
    if keeper.fileno() not in dict(poll.poll()):
        poll.unregister(0)
        poll.poll(_LAST_WORDS_WITHIN_S * 1000)
    worker.kill()


def _end_with_keeper(token: str) -> None:
    """End this process when the keeper does, whatever it is doing."""
    keeper = _find_keeper(token)

    def watch() -> None:
        while True:
            try:
                if not keeper.recv(1):
                    break
            except OSError:
                break
        os._exit(KEEPER_GONE)

    threading.Thread(target=watch, daemon=True).start()


def _listen(token: str) -> socket.socket:
    """Be the keeper of this client, and the only one: what an older connection left running has to end."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    while True:
        try:
            listener.bind(_name(token))
        except OSError:
            _end_older_keeper(token)
        else:
            listener.listen(16)
            return listener


def _end_older_keeper(token: str) -> None:
    try:
        older = _find_keeper(token)
    except SystemExit:  # it has just ended
        return
    os.kill(_peer(older)[0], signal.SIGKILL)
    older.close()
    time.sleep(0.05)


def _peer(other: socket.socket) -> tuple[int, int, int]:
    """Process, user and group at the other end."""
    credentials = struct.Struct("3i")
    pid, user, group = credentials.unpack(other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
    return pid, user, group


def _find_keeper(token: str) -> socket.socket:
    keeper = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        keeper.connect(_name(token))
    except OSError:
        _say("the connection that this belongs to has ended")
        sys.exit(KEEPER_GONE)
    return keeper


def _name(token: str) -> bytes:
    """An abstract socket's: no file is left behind."""
    return b"\0rwkv-tpu-" + token.encode()


def _send_descriptor(guest: socket.socket, descriptor: int) -> None:
    guest.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])


def _receive_descriptor(keeper: socket.socket) -> int:
    descriptors = array.array("i")
    data, ancillary, _, _ = keeper.recvmsg(4096, socket.CMSG_SPACE(descriptors.itemsize))
    for _, _, content in ancillary:
        descriptors.frombytes(content)
    if not descriptors:
        _say(data.decode() or "the connection that this belongs to has ended")
        sys.exit(BOARD_IN_USE if data else KEEPER_GONE)
    return descriptors[0]


def _lock(path: Path) -> int:
    """Take a board's lock.

    Raises:
        BlockingIOError: it is held; says by whom.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Without O_CREAT: with it, kernels refuse another user's file in a folder that all may write to.
        lock = os.open(path, flags)
    except FileNotFoundError:
        lock = os.open(path, flags | os.O_CREAT, 0o666)
        os.fchmod(lock, 0o666)  # whatever the umask: others must be able to lock it too
    try:
        _wait_for_lock(lock, "")
    except BlockingIOError:
        try:
            holder = json.loads(os.pread(lock, _TEXT_BYTES, 0))
            by = f"by process {holder['pid']} there since {holder['since']}: {holder['command']}"
        except (ValueError, KeyError, TypeError):
            by = "by another process there"
        os.close(lock)
        raise BlockingIOError(f"{path.stem} is in use {by}. Wait for it to end") from None
    client = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    holder = {
        "pid": os.getpid(),
        "command": f"rwkv-tpu for {pwd.getpwuid(os.getuid()).pw_name} at {client}",
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps(holder).encode(), 0)
    return lock


def _wait_for_lock(file: int, message: str, within_s: float = _LOCK_WITHIN_S) -> None:
    """Lock an open file; whoever is being ended right now may still hold it for a moment."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BlockingIOError(message) from None
            time.sleep(0.1)
        else:
            return


def _board(number: int, libsophon: str | None, root: Path) -> dict[str, object]:
    """What there is of a board, as harness.device.board looks for it."""
    folder = root / "opt/sophon/libsophon-current/lib" if libsophon is None else Path(libsophon)
    if libsophon is not None and (folder / "lib").is_dir():
        folder /= "lib"
    libraries = [folder / "libbmlib.so", folder / "libbmrt.so"]
    nodes = [root / f"dev/bm-sophon{number}"] + ([root / "dev/bm-tpu0"] if number == 0 else [])
    try:
        simulator = _SIMULATOR_SIGN in libraries[0].read_bytes()
    except OSError:
        simulator = False
    return {
        "libraries": str(folder),
        "missing": [str(path) for path in libraries if not path.exists()],
        "simulator": simulator,
        "nodes": [str(path) for path in nodes],
        "nodes_found": [str(path) for path in nodes if path.exists()],
    }


def _is(path: Path, size: int, sha256: str) -> bool:
    """Whether the file is there with this content."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            for piece in iter(lambda: file.read(_PIECE_BYTES), b""):
                digest.update(piece)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == sha256


def _reply(**fields: object) -> None:
    data = (MARK + json.dumps(fields) + "\n").encode()
    while data:
        data = data[os.write(1, data) :]


def _say(words: str) -> None:
    """Tell a person, by way of standard error."""
    os.write(2, words.encode() + b"\n")


def _line() -> bytes:
    """One line of standard input, and not a byte more: the rest may be a file's or a worker's."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit(KEEPER_GONE)
        line += byte
    return line


def main() -> None:
    """Do the action that the first argument names."""
    actions: dict[str, Callable[..., None]] = {"keep": keep, "receive": receive, "read": read, "work": work}
    action = actions[sys.argv[1]]
    arguments = json.loads(sys.argv[2] if len(sys.argv) > 2 else _line())
    try:
        action(**arguments)
    except OSError as error:  # a folder that cannot be written, a disk that is full: for a person to see to
        _reply(error="system", message=str(error))
        raise


if __name__ == "__main__":
    main()
