"""One connection through the OpenSSH client: its own errors as types, and commands that share it.

OpenSSH knows keys, agents, jump hosts and the user's configuration; this adds that nothing is ever asked, that host
keys are always checked, and that a connection which is gone is noticed.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, cast

from harness.device.remote import far_side
from harness.device.remote.faults import (
    AuthenticationRefused,
    ConnectionLost,
    HostKeyRefused,
    NoPython,
    RemoteFault,
    Unreachable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from harness.device.remote.address import RemoteAddress

_OPTIONS = (
    "BatchMode=yes",  # nothing is asked, so no password is ever passed on
    "StrictHostKeyChecking=yes",
    "NoHostAuthenticationForLocalhost=no",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "ControlPersist=no",
    "LogLevel=INFO",
    "ConnectTimeout=20",
    "ServerAliveCountMax=3",
)
_FAILED = 255  # exit code of ssh itself
_NOT_FOUND = (126, 127)
_OLD_PYTHON = 77
_CONNECT_WITHIN_S = 60.0
_REPLY_WITHIN_S = 600.0
_ENDS_WITHIN_S = 5.0
_LAST_WORDS_LINES = 12

# Reads the script up to a zero byte and no further, for the rest is the script's. One line that any shell takes.
_START = (
    f"import os,sys;sys.exit({_OLD_PYTHON}) if sys.version_info<(3,8) else "
    "exec(b''.join(iter(lambda:os.read(0,1) or b'\\0',b'\\0')))"
)


class Connection:
    """An authenticated connection, kept open by a keeper on the other side.

    Attributes:
        facts: what the keeper told of the machine.
    """

    def __init__(
        self,
        address: RemoteAddress,
        *,
        token: str,
        config: Path | None,
        root: str = "/",
        silence_s: float = far_side.SILENCE_S,
    ) -> None:
        """Connect.

        Args:
            address: where to.
            token: names this client to the other side, also over several connections.
            config: a configuration of ssh in place of the user's own.
            root: where the other file system begins, for tests.
            silence_s: after so long without a sign of life either side takes the connection for dead, ours earlier.

        Raises:
            Unreachable, HostKeyRefused, AuthenticationRefused, NoPython, RemoteFault: no connection.
        """
        self._address = address
        self._token = token
        self._config = () if config is None else ("-F", str(config))
        self._folder = Path(tempfile.mkdtemp(prefix="rwkv-ssh-"))  # only for us: the socket opens the connection
        self._sign_every_s = silence_s / 6
        self._closing = threading.Event()
        self._keeper: Command | None = None
        self._heart: threading.Thread | None = None
        try:
            self._keeper = Command([*self._ssh("-M"), self.script("keep")], self)
            self._keeper.say(
                cache=address.cache,
                number=address.number,
                libsophon=address.libsophon,
                root=root,
                silence_s=silence_s,
            )
            self.facts = self._keeper.reply(_CONNECT_WITHIN_S)
        except ConnectionLost as error:
            self.close()
            raise self._why_not(error) from None
        except BaseException:
            self.close()
            raise
        self._heart = threading.Thread(target=self._give_signs_of_life, daemon=True)
        self._heart.start()

    @property
    def token(self) -> str:
        """What names this client to the other side."""
        return self._token

    @property
    def label(self) -> str:
        """The machine in words."""
        return self._address.login

    def command(self, remote_command: str) -> list[str]:
        """The local command that runs *remote_command*, written for a shell, over this connection and no other."""
        # Without a connection to share, ssh would make one of its own: this keeps it from that.
        return [*self._ssh("-o", "ControlMaster=no", "-o", "ProxyCommand=false"), remote_command]

    def script(self, action: str) -> str:
        """The remote command that runs an action of `far_side`, whose text then has to be sent."""
        return self.python("-c", _START, action)

    def python(self, *arguments: str, variables: Iterable[tuple[str, str]] = ()) -> str:
        """The remote command that runs Python there, in a clean environment; a shell has to read it."""
        settings = [shlex.quote(f"{name}={value}") for name, value in variables]
        kept = [f'{name}="${name}"' for name in ("HOME", "PATH", "SSH_CONNECTION")]
        words = [self._address.python, *arguments]
        return " ".join(["exec env -i", *kept, *settings, *map(shlex.quote, words)])

    def start(self, action: str, **arguments: Any) -> Command:
        """Start an action of `far_side`, to be used as a context manager."""
        command = Command(self.command(self.script(action)), self)
        try:
            command.say(**arguments)
        except BaseException:
            command.kill()
            raise
        return command

    def keeper_is(self, command: Command) -> bool:
        """Whether *command* is what keeps the connection open."""
        return self._keeper is command

    def lost(self, within_s: float = 3.0) -> bool:
        """Whether the connection is gone; a command that failed with it may be told of it a moment earlier."""
        if self._keeper is None:
            return True
        with suppress(subprocess.TimeoutExpired):
            self._keeper.process.wait(within_s)
        return self._keeper.process.poll() is not None

    def loss(self, doing: str) -> ConnectionLost:
        """The error to raise once `lost`."""
        words = self._keeper.last_words() if self._keeper is not None else ""
        return ConnectionLost(f"{doing}: the connection to {self.label} was lost" + (f": {words}" if words else ""))

    def close(self) -> None:
        """End the connection and whatever still runs over it; twice does nothing."""
        self._closing.set()
        if self._heart is not None:
            self._heart.join(_ENDS_WITHIN_S)
        if self._keeper is not None:
            self._keeper.end(_ENDS_WITHIN_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ssh(self, *more: str) -> list[str]:
        alive = f"ServerAliveInterval={max(1, round(self._sign_every_s))}"  # three unanswered, and it is lost
        options = [part for option in (*_OPTIONS, alive) for part in ("-o", option)]
        user = () if self._address.user is None else ("-l", self._address.user)
        port = () if self._address.port is None else ("-p", str(self._address.port))
        socket = str(self._folder / "socket").replace("%", "%%")
        return ["ssh", *self._config, *options, "-S", socket, *more, *user, *port, "--", self._address.host]

    def _give_signs_of_life(self) -> None:
        keeper = cast("Command", self._keeper)
        while not self._closing.wait(self._sign_every_s):
            try:
                keeper.write(b".")
            except (OSError, ValueError):  # lost, which is told to whoever uses the connection next
                return

    def _why_not(self, error: ConnectionLost) -> RemoteFault:
        """Turn ssh's own words into an error that says what to do."""
        words, code, label = error.args[0], error.returncode, self.label
        if "Host key verification failed" in words or "host key is known" in words:
            return HostKeyRefused(self._how_to_trust(changed="has changed and you have requested" in words))
        if "Permission denied" in words or "Too many authentication failures" in words:
            return AuthenticationRefused(
                f"{label} does not let this user in without a password:\n{words}\n"
                f"Make a key with ssh-keygen, copy it with: ssh-copy-id {shlex.join(self._destination())}"
            )
        if code == _OLD_PYTHON:
            return NoPython(
                f"{self._address.python} on {label} is older than 3.8. Name a newer one: "
                f"{self._address.label}?python=/path/to/python3"
            )
        if code in _NOT_FOUND:
            return NoPython(
                f"{label} has no {self._address.python}, or it does not start:\n{words}\n"
                f"Install Python 3.8 or newer there, or name it: {self._address.label}?python=/path/to/python3"
            )
        if code in {_FAILED, None}:
            return Unreachable(f"{label} is not reached. Try: ssh {shlex.join(self._destination())}\n{words}")
        return RemoteFault(f"{label}: the first command ended with exit code {code}:\n{words}")

    def _how_to_trust(self, *, changed: bool) -> str:
        """What to do about a host key that is not known."""
        command = ["ssh", *self._config, "-G", *self._destination()]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        settings = dict(line.partition(" ")[::2] for line in found.stdout.splitlines())
        host, port = settings.get("hostname", self._address.host), settings.get("port", "22")
        known = settings.get("userknownhostsfile", "~/.ssh/known_hosts").split()[0]
        name = settings.get("hostkeyalias") or (host if port == "22" else f"[{host}]:{port}")
        what = "is not the machine that is known by this name, or has new keys" if changed else "is not known here"
        forget = f"  ssh-keygen -R {shlex.quote(name)} -f {shlex.quote(known)}\n" if changed else ""
        return (
            f"{self.label} {what}, so nothing was sent to it. Find out whether it is the right one:\n"
            f"  ssh-keyscan -p {port} {shlex.quote(host)} > host.keys && ssh-keygen -lf host.keys\n"
            "must show what the machine itself shows with:\n"
            "  for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $key; done\n"
            f"Only if it does:\n{forget}  sed {shlex.quote(f's/^[^ ]*/{name}/')} host.keys >> {shlex.quote(known)}"
        )

    def _destination(self) -> list[str]:
        port = [] if self._address.port is None else ["-p", str(self._address.port)]
        return [*port, self._address.login]


class Command:
    """A command on the other side, with lines of JSON both ways and bytes to it."""

    def __init__(self, command: Sequence[str], connection: Connection) -> None:
        """Start it and send it the text of `far_side`."""
        self._connection = connection
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object, has no name to clean up
        self._unread = b""
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                bufsize=0,
                start_new_session=True,  # Ctrl-C reaches it only through us
            )
        except FileNotFoundError:
            self._words.close()
            raise RemoteFault("there is no ssh here: install the OpenSSH client") from None
        except BaseException:
            self._words.close()
            raise
        self._input = cast("IO[bytes]", self.process.stdin)
        self._output = cast("IO[bytes]", self.process.stdout)

    def say(self, **arguments: Any) -> None:
        """Send the script and what it needs to know."""
        script = Path(far_side.__file__).read_bytes()
        line = json.dumps({"token": self._connection.token, **arguments}).encode()
        with suppress(BrokenPipeError):  # the reply, which will not come, tells why
            self.write(script + b"\0" + line + b"\n")

    def write(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            BrokenPipeError: the command has ended.
        """
        view = memoryview(data)
        while view:
            view = view[os.write(self._input.fileno(), view) :]

    def reply(self, within_s: float = _REPLY_WITHIN_S) -> dict[str, Any]:
        """Wait for its next reply.

        Raises:
            ConnectionLost: it ended without one, because the connection was cut.
            RemoteFault: it ended without one for another reason, or did not answer in time.
        """
        deadline = time.monotonic() + within_s
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        mark = far_side.MARK.encode()
        while True:
            line, end, rest = self._unread.partition(b"\n")
            if end:
                self._unread = rest
                if line.startswith(mark):
                    return self._understood(json.loads(line[len(mark) :]))
                raise RemoteFault(
                    f"{self._connection.label} prints to standard output when a command is run there: "
                    f"{line[:200].decode(errors='replace')!r}. Its shell's start-up files should do so only when "
                    "somebody sits in front of it"
                )
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self.kill()
                raise RemoteFault(f"{self._connection.label} did not answer within {within_s:g} s")
            data = os.read(self._output.fileno(), 1 << 16)
            if not data:
                raise self._ended()
            self._unread += data

    def end(self, within_s: float) -> None:
        """End its input and wait for it, and kill it if it does not end by itself."""
        self._input.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(within_s)
        self.kill()

    def kill(self) -> None:
        """End it at once; twice does nothing."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._input.close()
        self._output.close()
        self._words.close()

    def last_words(self) -> str:
        """The end of what it, or ssh, wrote to standard error."""
        if self._words.closed:
            return ""
        size = os.fstat(self._words.fileno()).st_size
        text = os.pread(self._words.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")
        return "\n".join(line.rstrip() for line in text.splitlines()[-_LAST_WORDS_LINES:])

    def __enter__(self) -> Self:
        """Return the command."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See it off: after an error at once."""
        if error is None:
            self.end(_ENDS_WITHIN_S)
        else:
            self.kill()

    def _understood(self, reply: dict[str, Any]) -> dict[str, Any]:
        if reply.get("error") == "system":
            raise RemoteFault(f"{self._connection.label}: {reply['message']}")
        return reply

    def _ended(self) -> RemoteFault:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_ENDS_WITHIN_S)
        code, words = self.process.poll(), self.last_words()
        if self._connection.keeper_is(self):
            return ConnectionLost(words, returncode=code)
        if self._connection.lost():
            return self._connection.loss("waiting for an answer")
        return RemoteFault(f"{self._connection.label}: a command ended with exit code {code}:\n{words}")
