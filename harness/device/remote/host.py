"""A distant board, used as if it were here: files go over once, the worker runs there, faults are told by type."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import time
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

from harness.device.board import Board, BoardKind, NoBoardError
from harness.device.health import as_readings, read_health, sensors_kind, unavailable
from harness.device.remote import far_side
from harness.device.remote.address import RemoteAddress
from harness.device.remote.faults import BoardInUse, ConnectionLost, NoSpace, RemoteFault, Unreachable
from harness.device.remote.package import worker_package
from harness.device.remote.ssh import Command, Connection
from runtime.engine import Engine
from runtime.faults import WorkerDied, WorkerHung
from runtime.libraries import Libraries
from runtime.nets import assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from reports.schema import Reading
    from runtime.engine import Assemble
    from runtime.framing import Message
    from runtime.nets import Floats

_T = TypeVar("_T")

_PAUSES_S = (0.0, 1.0, 4.0, 15.0)
_PIECE_BYTES = 1 << 20


class RemoteEngine(Engine):
    """An engine whose worker is at the other end of a connection."""

    connection: Connection | None = None

    def request(self, doing: str, payloads: Sequence[bytes] = (), **fields: Any) -> Message:
        """Pass a request to the worker.

        Raises:
            ConnectionLost: the connection was cut; the state of all sessions is gone with the worker.
            RuntimeFault: as of any engine.
        """
        with _telling_of_losses(self.connection, doing):
            return super().request(doing, payloads, **fields)

    @property
    def alive(self) -> bool:
        """Whether it still answers; after a cut, noticed in a request or not, only a new engine does."""
        return super().alive and not (self.connection is not None and self.connection.lost(within_s=0))

    def close(self) -> None:
        """Free the device's memory and end the worker; closing twice does nothing.

        After a cut there is nothing to free: the worker has ended with the connection.

        Raises:
            WorkerDied, WorkerHung: as of any engine.
        """
        with suppress(ConnectionLost), _telling_of_losses(self.connection, "ending the worker"):
            super().close()


class RemoteHost:
    """A distant board and the connection to it, which is made anew when it was cut; to be used as a context manager.

    The board is locked from the first worker on until this is closed.

    Attributes:
        address: where it is.
        board: what was found there; its paths are of the other machine.
        sent_bytes: how much of files went over so far.
    """

    def __init__(
        self,
        address: RemoteAddress,
        *,
        config: Path | None = None,
        root: str = "/",
        silence_s: float = far_side.SILENCE_S,
    ) -> None:
        """Connect and see that there is a board; see `open_remote`."""
        self.address = address
        self.sent_bytes = 0
        self._closed = False
        self._token = secrets.token_hex(16)
        self._config = config
        self._root = root
        self._silence_s = silence_s
        self._verified: dict[str, PurePosixPath] = {}  # SHA-256 to path, over the present connection
        self._connection: Connection | None = self._connect_anew()
        try:
            self.board = self._find_board(self._connection)
        except BaseException:
            self.close()
            raise

    @property
    def label(self) -> str:
        """What records call it: a simulator is never called a board."""
        return f"simulator (stand-in for board {self.address.label})" if self.simulated else self.address.label

    @property
    def name(self) -> str:
        """A word for the names of files about it."""
        return self.address.name

    @property
    def simulated(self) -> bool:
        """Whether no chip is behind it."""
        return self.board.simulated

    @property
    def description(self) -> str:
        """One line for a person."""
        facts = self._living().facts
        what = "BM1684X " + (self.label if self.simulated else f"board {self.label} ({self.board.kind.value})")
        return f"{what}, libraries {self.board.libraries.folder} there, Python {facts['python']} on {facts['system']}"

    @property
    def recovery(self) -> str:
        """What to paste to bring the board back, for a person to decide on."""
        if self.simulated:
            return self.board.recovery
        return f"on {self.address.login}: {self.board.recovery}"

    def upload(self, file: Path) -> PurePosixPath:
        """Copy *file* there, unless it is there with the same content; what a cut connection left off is gone on with.

        Returns:
            Where it is there: its name is the SHA-256 of its content.

        Raises:
            ConnectionLost, Unreachable: cut again and again, without a byte of progress.
            NoSpace, RemoteFault: it cannot be kept there.
        """
        return self._persistently(lambda connection: self._send_file(connection, file))

    def worker_command(self) -> list[str]:
        """The local command that runs a worker there, with its standard input and output."""
        return self._persistently(self._worker_command)

    def open_engine(
        self,
        bmodels: Sequence[Path],
        *,
        timeout_s: float = 600.0,
        assemble: Assemble = assemble,
        embedding: Floats | None = None,
    ) -> RemoteEngine:
        """Copy *bmodels* there and load them; the first time the board is locked.

        Args:
            bmodels: files of this machine.
            timeout_s: limit for every single request to the worker.
            assemble: see :meth:`runtime.engine.Engine.open`.
            embedding: the same; it stays here, and its rows go there as tokens do.

        Raises:
            BoardInUse: somebody else has locked it.
            RemoteFault: of any class: the machine or the connection to it.
            RuntimeFault: as `Engine.open`.
        """
        return self._persistently(lambda connection: self._open(connection, bmodels, timeout_s, assemble, embedding))

    def readings(self) -> tuple[Reading, ...]:
        """What the board tells of its health, see `read_health`; the places named are of the other machine.

        Where the machine does not answer, every reading says so: this raises no fault.
        """
        if self.simulated:
            return read_health(self.board)
        try:
            return self._persistently(self._readings)
        except RemoteFault as fault:
            return unavailable(str(fault).partition("\n")[0])

    def close(self) -> None:
        """End the connection and whatever runs over it, for good; twice does nothing."""
        self._closed = True
        self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> Self:
        """Return the host."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the connection."""
        self.close()

    def _find_board(self, connection: Connection) -> Board:
        """What the keeper found, as `harness.device.board.locate_board` judges it."""
        facts, number = connection.facts, self.address.number
        folder = Path(facts["libraries"])
        if facts["simulator"] and not facts["missing"]:
            if number:
                raise NoBoardError(
                    f"no board {number} on {connection.label}: the stand-in {folder} has one board, number 0"
                )
            return Board(number=0, kind=BoardKind.STAND_IN, libraries=Libraries.cmodel(folder))
        missing = list(facts["missing"])
        if not facts["nodes_found"]:
            missing.append(" or ".join(facts["nodes"]))
        if missing:
            raise NoBoardError(
                f"no board {number} on {connection.label}; looked for and did not find: {', '.join(missing)}\n"
                f"Install libsophon and its driver there. Where it lies elsewhere: {self.address.label}?libsophon=/DIR"
            )
        soc = any(path.endswith("bm-tpu0") for path in facts["nodes_found"])
        return Board(number=number, kind=BoardKind.SOC if soc else BoardKind.PCIE, libraries=Libraries.board(folder))

    def _connect_anew(self) -> Connection:
        return Connection(
            self.address, token=self._token, config=self._config, root=self._root, silence_s=self._silence_s
        )

    def _living(self) -> Connection:
        """The connection, or a new one where it was cut."""
        if self._closed:
            raise RemoteFault(f"the connection to {self.address.login} was closed")
        if self._connection is None or self._connection.lost(within_s=0):
            self._disconnect()
            self._verified.clear()
            self._connection = self._connect_anew()
        return self._connection

    def _persistently(self, do: Callable[[Connection], _T]) -> _T:
        """Do something, again after a cut; give up after several cuts without a byte of progress between them."""
        tries = 0
        while True:
            sent = self.sent_bytes
            try:
                return do(self._living())
            except (ConnectionLost, Unreachable):
                tries = tries + 1 if self.sent_bytes == sent else 0
                if tries >= len(_PAUSES_S):
                    raise
                time.sleep(_PAUSES_S[tries])

    def _open(
        self,
        connection: Connection,
        bmodels: Sequence[Path],
        timeout_s: float,
        assemble: Assemble,
        embedding: Floats | None,
    ) -> RemoteEngine:
        paths = [Path(self._send_file(connection, bmodel)) for bmodel in bmodels]
        with _telling_of_losses(connection, "opening the board"):
            engine = RemoteEngine.open(
                self.board.libraries,
                paths,
                device=self.address.number,
                timeout_s=timeout_s,
                command=self._worker_command(connection),
                local=False,
                assemble=assemble,
                embedding=embedding,
            )
        engine.connection = connection
        return engine

    def _worker_command(self, connection: Connection) -> list[str]:
        return connection.command(self._from_package(connection, "work", number=self.address.number))

    def _from_package(self, connection: Connection, action: str, **arguments: Any) -> str:
        """The remote command that runs an action from the package, which is copied there where it is not yet."""
        content = worker_package()
        sha256 = hashlib.sha256(content).hexdigest()
        package = str(self._send(connection, io.BytesIO(content), len(content), sha256, ".zip"))
        fields = {"token": connection.token, **({"package": package} if action == "work" else {}), **arguments}
        return connection.python("-m", "far_side", action, json.dumps(fields), variables=[("PYTHONPATH", package)])

    def _send_file(self, connection: Connection, file: Path) -> PurePosixPath:
        with file.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
            size = content.tell()
            return self._send(connection, content, size, sha256, file.suffix)

    def _send(self, connection: Connection, content: IO[bytes], size: int, sha256: str, suffix: str) -> PurePosixPath:
        if sha256 in self._verified:
            return self._verified[sha256]
        path = PurePosixPath(connection.facts["cache"]) / (sha256 + suffix)
        for _ in range(2):  # once more from the start, should the part that was there be damaged
            with connection.start("receive", path=str(path), size=size, sha256=sha256) as command:
                have = self._begin(command.reply(), connection, size)
                content.seek(have)
                self._stream(content, command)
                if command.reply()["done"]:
                    self._verified[sha256] = path
                    return path
        raise RemoteFault(f"{path} does not arrive whole on {connection.label}: its bytes or its source keep changing")

    def _begin(self, reply: dict[str, int | str], connection: Connection, size: int) -> int:
        if reply.get("error") == "space":
            raise NoSpace(
                f"{connection.label} has {reply['free']} bytes free, and a file of {size} has to go there. "
                f"Make room, for example with: ssh {self.address.login} 'rm -r {self.address.cache}'; or keep the "
                f"copies elsewhere: {self.address.label}?cache=/folder"
            )
        return int(reply["have"])

    def _stream(self, content: IO[bytes], command: Command) -> None:
        try:
            while piece := content.read(_PIECE_BYTES):
                command.write(piece)
                self.sent_bytes += len(piece)
        except BrokenPipeError:  # the next reply, which may not come, tells why
            pass

    def _readings(self, connection: Connection) -> tuple[Reading, ...]:
        kind, number = sensors_kind(self.board), self.address.number
        remote = self._from_package(connection, "read", kind=kind, number=number, root=self._root)
        with Command(connection.command(remote), connection) as command:
            return as_readings(command.reply()["readings"])


def open_remote(
    address: RemoteAddress | str, *, config: Path | None = None, root: str = "/", silence_s: float = far_side.SILENCE_S
) -> RemoteHost:
    """Connect to the machine of a distant board and look for the board.

    Args:
        address: such as ``ssh://user@host/0``, see `RemoteAddress.parse`.
        config: a configuration of ssh in place of the user's own.
        root: where the other machine's file system begins, for tests.
        silence_s: after so long without a sign of life the other side ends by itself.

    Raises:
        AddressError: *address* is none.
        NoBoardError: there is no such board on that machine.
        Unreachable, HostKeyRefused, AuthenticationRefused, NoPython, RemoteFault: no connection.
    """
    parsed = RemoteAddress.parse(address) if isinstance(address, str) else address
    return RemoteHost(parsed, config=config, root=root, silence_s=silence_s)


@contextmanager
def _telling_of_losses(connection: Connection | None, doing: str) -> Iterator[None]:
    """Tell a lost connection and a locked board from a worker's death."""
    try:
        yield
    except (WorkerDied, WorkerHung) as error:
        if connection is None:
            raise
        code = error.returncode if isinstance(error, WorkerDied) else None
        if code == far_side.BOARD_IN_USE:
            raise BoardInUse(f"{connection.label}: {str(error).splitlines()[-1].strip()}") from error
        if connection.lost() or code == far_side.KEEPER_GONE:
            raise connection.loss(doing) from error
        raise
