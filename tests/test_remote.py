"""Distant boards, over a real OpenSSH server on the loopback device and connections that are cut."""

import getpass
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
import psutil
import pytest

from harness.device.board import Board, BoardKind, NoBoardError
from harness.device.health import read_health
from harness.device.lock import BoardBusyError, BoardLock
from harness.device.remote import far_side
from harness.device.remote.address import RemoteAddress
from harness.device.remote.faults import (
    AuthenticationRefused,
    BoardInUse,
    ConnectionLost,
    HostKeyRefused,
    NoPython,
    NoSpace,
    RemoteFault,
    Unreachable,
)
from harness.device.remote.host import RemoteEngine, open_remote
from harness.device.remote.package import worker_package
from runtime.engine import Engine, Versions
from runtime.faults import BadBmodel, WorkerDied, WorkerHung
from runtime.libraries import Kind, Libraries
from runtime.process import WorkerProcess
from runtime.session import Session
from tests.device_trees import PCIE, SOC, TOOLS, write_tree
from tests.ssh_server import Forwarder, an_ssh_server, gone_within, keygen

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of our own."""
    with an_ssh_server(tmp_path_factory.mktemp("remote") / "a server") as server:
        yield server


@pytest.fixture(autouse=True)
def a_whole_network(request):
    """Every test begins with one, and leaves no process on either side."""
    if "server" not in request.fixturenames:
        yield
        return
    server = request.getfixturevalue("server")
    here = set(psutil.Process().children(recursive=True))
    yield
    server.network.cut_after, server.network.silent = None, False
    gone_within(set(psutil.Process().children(recursive=True)) - here)


@pytest.fixture
def machine(tmp_path):
    """The file system of a machine with a PCIe card; there are no libraries in it that would load."""
    root = tmp_path / "a machine"
    libraries = root / "opt/sophon/libsophon-current/lib"
    libraries.mkdir(parents=True)
    (libraries / "libbmlib.so").write_bytes(b"of a board")
    (libraries / "libbmrt.so").write_bytes(b"of a board")
    for folder in ("dev", "tmp", "cache"):
        (root / folder).mkdir()
    (root / "dev/bm-sophon0").touch()
    return root


@pytest.fixture
def connect(server, machine):
    """Connect to the machine."""
    hosts = []

    def connect_once(*, config=None, root=machine, silence_s=90, **options):
        options = {"cache": str(root / "cache"), "python": sys.executable, **options}
        address = RemoteAddress(host="board", number=0, **options)
        hosts.append(open_remote(address, config=config or server.config, root=str(root), silence_s=silence_s))
        return hosts[-1]

    yield connect_once
    for host in hosts:
        host.close()


def a_file(folder, size, name="some model.bmodel"):
    """A file of random bytes."""
    path = folder / name
    path.write_bytes(os.urandom(size))
    return path


@contextmanager
def raw_worker(host, *, hanging=None, timeout_s=60.0):
    """A worker there, and the raw requests to it; *hanging* names a fifo that makes it hang."""
    if hanging is not None:
        os.mkfifo(hanging)
    worker = WorkerProcess(timeout_s=timeout_s, pausing=False, variables={}, command=host.worker_command())
    try:
        yield worker
    finally:
        worker.kill()


def engine_of(host, worker):
    """An engine without nets around a worker."""
    versions = Versions(
        kind=Kind.BOARD, device=0, libbmlib="", libbmrt="", libraries=(), chip_id=0, driver=None, runtime_flags=0
    )
    engine = RemoteEngine(worker, (), versions)
    engine.connection = host._connection
    return engine


def test_a_board_is_found(connect, machine):
    """What is there is told: kind, libraries, Python."""
    host = connect()
    assert (host.board.kind, host.simulated) == (BoardKind.PCIE, False)
    assert host.board.libraries == Libraries.board(machine / "opt/sophon/libsophon-current/lib")
    assert host.label == "ssh://board/0"
    assert f"Python {sys.version.split()[0]} on Linux" in host.description


def test_no_board_is_told(connect, machine):
    """What was looked for, on which machine."""
    (machine / "dev/bm-sophon0").unlink()
    with pytest.raises(NoBoardError, match=r"no board 0 on board; .*/dev/bm-sophon0 or .*/dev/bm-tpu0"):
        connect()


def test_the_whole_machine_is_looked_at(server, tmp_path):
    """From the root of its file system, wherever a login begins."""
    address = RemoteAddress(host="board", number=99, cache=str(tmp_path / "cache"), python=sys.executable)
    with pytest.raises(NoBoardError, match=r" /opt/sophon/libsophon-current/lib/libbmlib\.so.* /dev/bm-sophon99\b"):
        open_remote(address, config=server.config)


def test_a_simulator_is_called_one(connect, machine):
    """Records never mistake it for a board."""
    (machine / "opt/sophon/libsophon-current/lib/libbmlib.so").write_bytes(b"opens libcmodel.so")
    host = connect()
    assert host.label == "simulator (stand-in for board ssh://board/0)"
    assert host.board.libraries.kind is Kind.CMODEL


def test_a_file_arrives(connect, tmp_path):
    """Whole, under the hash of its content, and in a folder for its user alone; paths may have spaces."""
    file = a_file(tmp_path, 300_000)
    there = Path(connect().upload(file))
    assert there.read_bytes() == file.read_bytes()
    assert there.name == hashlib.sha256(file.read_bytes()).hexdigest() + ".bmodel"
    assert there.stat().st_mode & 0o077 == 0


def test_a_file_goes_over_once(connect, server, tmp_path):
    """Neither in the same nor in the next connection is it sent again: the network sees."""
    file = a_file(tmp_path, 3_000_000)
    first = connect()
    first.upload(file)
    assert first.sent_bytes == 3_000_000
    before = server.network.sent
    first.upload(file)
    second = connect()
    second.upload(file)
    assert second.sent_bytes == 0
    assert server.network.sent - before < 200_000


@pytest.mark.parametrize("seed", range(3))
def test_an_upload_goes_on_where_it_was_cut(connect, server, tmp_path, seed):
    """At whatever byte and however often; what had arrived is not sent again, but for what was under way."""
    size, under_way = 15_000_000, 3_000_000
    file = a_file(tmp_path, size)
    host = connect()
    cuts = [int(cut) for cut in np.random.default_rng(seed).integers(under_way, size // 3, 3)]
    coming = iter(cuts)
    begins = []
    begin = host._begin

    def begin_and_be_cut(*arguments):
        begins.append(begin(*arguments))
        server.network.cut_after = next(coming, None)
        return begins[-1]

    host._begin = begin_and_be_cut
    there = Path(host.upload(file))
    assert there.read_bytes() == file.read_bytes()
    assert not list(there.parent.glob("*.part"))
    assert [begins[0], len(begins)] == [0, 4]
    for i, cut in enumerate(cuts):
        assert begins[i] + cut - under_way < begins[i + 1] <= begins[i] + cut


def test_a_killed_upload_leaves_no_whole_file(connect, server, tmp_path):
    """What arrived in part has another name, and the next client goes on with it."""
    file = a_file(tmp_path, 5_000_000)
    host = connect()
    server.network.cut_after = 3_000_000
    host._connect_anew = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        host.upload(file)
    there = Path(host.address.cache)
    assert [path.suffix for path in there.iterdir()] == [".part"]
    other = connect()
    other.upload(file)
    assert 0 < other.sent_bytes < 5_000_000
    assert [path.suffix for path in there.iterdir()] == [".bmodel"]


@pytest.mark.parametrize("which", ["whole", "longer", "part", "longer part"])
def test_an_altered_file_is_replaced(connect, tmp_path, which):
    """Nothing there is trusted by its name or its length."""
    file = a_file(tmp_path, 1_000_000)
    there = Path(connect().upload(file))
    content = bytearray(file.read_bytes())
    content[12345] ^= 1
    if "longer" in which:
        content += b"more"
    if "part" in which:
        there.unlink()
        there.with_name(there.name + ".part").write_bytes(content if "longer" in which else content[:500_000])
    else:
        there.write_bytes(content)
    assert connect().upload(file) == there or there.read_bytes() == file.read_bytes()
    assert there.read_bytes() == file.read_bytes()


def test_a_new_connection_trusts_nothing(connect, server, tmp_path):
    """What was verified before a cut is verified again after it."""
    file = a_file(tmp_path, 100_000)
    host = connect()
    there = Path(host.upload(file))
    server.network.cut()
    assert host._connection.lost()
    there.write_bytes(bytes(100_000))
    host.upload(file)
    assert there.read_bytes() == file.read_bytes()


def test_a_file_that_changes_meanwhile_is_told(connect, tmp_path, monkeypatch):
    """A hash that never comes out right ends in an error, not in an endless loop."""
    file = a_file(tmp_path, 1000)
    monkeypatch.setattr(hashlib, "file_digest", lambda content, _: (content.read(), hashlib.sha256(b"other"))[1])
    with pytest.raises(RemoteFault, match="does not arrive whole"):
        connect().upload(file)


def test_a_full_disk_is_told(connect, tmp_path):
    """Before anything is sent, with the way to make room."""
    file = tmp_path / "huge"
    host = connect()
    connection = host._living()
    with pytest.raises(NoSpace, match=r"bytes free, and a file of \d+ has to go there(.|\n)*rm -r"):
        host._send(connection, io.BytesIO(), 1 << 60, "0" * 64, file.suffix)


def test_a_folder_that_cannot_be_made_is_told(connect, machine):
    """The other machine's own reason comes through."""
    (machine / "file").touch()
    with pytest.raises(RemoteFault, match=r"board: .*Not a directory: .*/file/cache"):
        connect(cache=str(machine / "file/cache"))


def test_an_unknown_host_is_refused(connect, server, tmp_path):
    """With the commands that find out about it; pasted, they make it known."""
    known = tmp_path / "known"
    config = server.configure("unknown", known=known, alias=None)
    with pytest.raises(HostKeyRefused, match="is not known here, so nothing was sent") as caught:
        connect(config=config)
    lines = [line.strip() for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert lines[0].startswith(f"ssh-keyscan -p {server.network.port} 127.0.0.1")
    subprocess.run(
        ["/bin/sh", "-e", "-c", "\n".join([lines[0], lines[-1]])], cwd=tmp_path, check=True, capture_output=True
    )
    connect(config=config)


def test_a_changed_host_key_is_refused(connect, server, tmp_path):
    """Another machine under a known name is never spoken to."""
    other = keygen(tmp_path / "other")
    known = tmp_path / "known"
    known.write_text(f"the-board {Path(f'{other}.pub').read_text()}")
    with pytest.raises(HostKeyRefused, match=r"is not the machine that is known(.|\n)*ssh-keygen -R"):
        connect(config=server.configure("changed", known=known))


def test_a_wrong_key_is_refused(connect, server, tmp_path):
    """The error says how to get in; no password is asked for."""
    config = server.configure("stranger", key=keygen(tmp_path / "stranger"))
    with pytest.raises(AuthenticationRefused, match=r"Permission denied \(publickey\)(.|\n)*ssh-copy-id"):
        connect(config=config)


def test_nobody_there_is_told(connect, server):
    """Whatever ssh says of it comes through."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Unreachable, match="Connection refused"):
        connect(port=port)
    with pytest.raises(Unreachable, match="not reached"):
        open_remote(RemoteAddress(host="no-such-machine.invalid", number=0), config=server.config)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "has no .*/python, or it does not start"),
        ("import sys; sys.version_info = (3, 7); exec(sys.argv[2])", "is older than 3.8"),
    ],
)
def test_no_python_is_told(connect, tmp_path, script, words):
    """A missing and an old one."""
    python = tmp_path / "python"
    if script is not None:
        python.write_text(f"#!{sys.executable}\n{script}\n")
        python.chmod(0o755)
    with pytest.raises(NoPython, match=words):
        connect(python=str(python))


def test_a_talkative_login_is_told(connect, tmp_path):
    """Bytes of a shell's start-up files are not taken for replies."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho Welcome\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(RemoteFault, match=r"prints to standard output .* 'Welcome'"):
        connect(python=str(python))


def test_no_ssh_is_told(connect, monkeypatch):
    """Where the client is not installed."""
    monkeypatch.setenv("PATH", "/nonsense")
    with pytest.raises(RemoteFault, match="install the OpenSSH client"):
        connect()


def test_a_worker_answers_from_there(connect, tmp_path):
    """It is the worker of this checkout, and its faults come back as they are."""
    with raw_worker(connect()) as worker:
        with pytest.raises(BadBmodel, match=r"model\.bmodel cannot be read: No such file"):
            worker.request("looking", do="check", bmodel=str(tmp_path / "model.bmodel"))
        worker.close()


def test_a_worker_finds_a_clean_environment(connect, server):
    """Nothing of the login's environment reaches the libraries but what every program needs."""
    with raw_worker(connect()) as worker:
        worker.request("waiting", do="close")
        assert set(server.worker().environ()) <= {
            "HOME", "PATH", "SSH_CONNECTION", "PYTHONPATH", "TMPDIR", "LC_CTYPE"
        }  # fmt: skip


def test_a_cut_is_a_fault_of_its_own(connect, server, tmp_path):
    """In the middle of a request: nobody is left there, and a new connection works."""
    host = connect()
    hanging = tmp_path / "fifo"
    with raw_worker(host, hanging=hanging) as worker:
        threading.Timer(1.0, server.network.cut).start()
        with pytest.raises(ConnectionLost, match="checking: the connection to board was lost") as caught:
            engine_of(host, worker).request("checking", do="check", bmodel=str(hanging))
        assert isinstance(caught.value, WorkerDied)
    gone_within(server.workers(), 5)
    with raw_worker(host) as worker:
        worker.request("closing", do="close")


def test_a_worker_that_was_given_up_is_gone_before_the_next(connect, server, tmp_path):
    """A hanging one is killed here by ending its input; the board never has two."""
    host = connect()
    with raw_worker(host, hanging=tmp_path / "fifo", timeout_s=2) as worker:
        engine = engine_of(host, worker)
        with pytest.raises(WorkerHung) as caught:
            engine.request("checking", do="check", bmodel=str(tmp_path / "fifo"))
        assert not isinstance(caught.value, ConnectionLost)
    old = server.worker()
    with raw_worker(host) as worker:
        worker.request("starting", do="close")
        assert not old.is_running()


def test_a_death_there_is_no_cut(connect, server, tmp_path):
    """A worker that dies while the connection lives is told as such, by its signal's name."""
    host = connect()
    hanging = tmp_path / "fifo"
    with raw_worker(host, hanging=hanging) as worker:
        threading.Timer(2.0, lambda: server.worker().send_signal(signal.SIGSEGV)).start()
        with pytest.raises(WorkerDied, match="the worker was killed by SIGSEGV") as caught:
            engine_of(host, worker).request("checking", do="check", bmodel=str(hanging))
        assert not isinstance(caught.value, ConnectionLost)


def test_a_silent_cut_is_noticed(connect, server, tmp_path):
    """A network that just stops: no packet tells either side, so the patience of both ends. Patience is not luck."""
    host = connect(silence_s=6)
    with raw_worker(host, hanging=tmp_path / "fifo") as worker:
        worker.request("starting", do="close")
        time.sleep(7)
        worker.request("still here", do="close")
        left = server.workers()
        assert len(left) == 2
        server.network.silent = True
        with pytest.raises(ConnectionLost):
            engine_of(host, worker).request("hanging", do="check", bmodel=str(tmp_path / "fifo"))
        gone_within(left, 12)
    server.network.cut()
    server.network.silent = False


def test_a_client_that_comes_back_has_its_board_back(connect, server):
    """After a silent cut the old connection still holds the board; its client is known, and takes over."""
    host = connect()
    with raw_worker(host) as worker:
        worker.request("starting", do="close")
        old = server.workers()
        server.network.silent = True
        connection, host._connection = host._connection, None
        another_way = Forwarder(server.port)
        host._config = server.configure("another way", port=another_way.port)
        with raw_worker(host) as another:
            another.request("starting", do="close")
            gone_within(old, 5)
    host.close()
    connection._keeper.kill()
    connection.close()
    another_way.close()


def test_a_killed_client_leaves_nobody(server, machine, tmp_path):
    """Whatever a client dies of: nothing of it runs on, here or there."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from harness.device.remote.address import RemoteAddress
from harness.device.remote.host import open_remote
from runtime.process import WorkerProcess
address = RemoteAddress(host="board", number=0, cache={str(machine / "cache")!r}, python={sys.executable!r})
host = open_remote(address, config=Path({str(server.config)!r}), root={str(machine)!r})
worker = WorkerProcess(timeout_s=100, pausing=False, variables={{}}, command=host.worker_command())
worker.request("starting", do="close")
print(host._connection._folder, flush=True)
worker.request("hanging", do="check", bmodel={str(tmp_path / "fifo")!r})
"""
    os.mkfifo(tmp_path / "fifo")
    client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    folder = Path(client.stdout.readline().decode().strip())
    left = psutil.Process(client.pid).children(recursive=True) + server.workers()
    assert len(left) >= 4
    client.kill()
    client.communicate()
    gone_within(left, 10)
    assert not list(folder.iterdir())
    folder.rmdir()


def test_one_client_at_a_time(connect, machine):
    """The second is told who works there; the first keeps the board between its workers."""
    first, second = connect(), connect()
    file = machine / "no.bmodel"
    with raw_worker(first) as worker:
        worker.request("starting", do="close")
        worker.close()
    file.write_bytes(b"no bmodel")
    with pytest.raises(BoardInUse, match=rf"^board: rwkv-tpu-board-0 is in use by process \d+ .*{getpass.getuser()}"):
        second.open_engine([file])
    first.close()
    with pytest.raises(BadBmodel):
        second.open_engine([file])


def test_an_embedding_stays_here(connect, machine, monkeypatch):
    """It is no file of the other machine: the engine here has it, and sends rows of it."""
    given, table, file = [], np.zeros((2, 3), np.float32), machine / "no.bmodel"
    file.write_bytes(b"no bmodel")

    def opened(*_, embedding, **__):
        given.append(embedding)
        raise BadBmodel("far enough")

    monkeypatch.setattr(RemoteEngine, "open", opened)
    for one in (table, None):
        with pytest.raises(BadBmodel, match="far enough"):
            connect().open_engine([file], embedding=one)
    assert given[0] is table
    assert given[1] is None


def test_the_lock_is_that_of_local_users(connect, machine):
    """Who sits at the board and who comes over the network exclude each other."""
    host = connect()
    lock = BoardLock("board-0", machine / "tmp")
    with raw_worker(host) as worker:
        worker.request("starting", do="close")
        with pytest.raises(BoardBusyError, match=f"rwkv-tpu for {getpass.getuser()} at 127.0.0.1"):
            lock.acquire()
    host.close()
    deadline = time.monotonic() + 60
    while lock.held() and time.monotonic() < deadline:
        time.sleep(0.1)
    (machine / "no.bmodel").write_bytes(b"")
    with lock, pytest.raises(BoardInUse, match="is in use by process"):
        connect().open_engine([machine / "no.bmodel"])


@pytest.mark.parametrize("kind", [BoardKind.PCIE, BoardKind.SOC])
def test_health_is_read_as_of_a_board_here(connect, machine, kind):
    """The same readings, with the other machine's places."""
    board = Board(number=0, kind=kind, libraries=Libraries.board(Path("/")), root=machine)
    if kind is BoardKind.SOC:
        (machine / "dev/bm-tpu0").touch()
    files = SOC if kind is BoardKind.SOC else {name.replace("bmsophon1", "bmsophon0"): PCIE[name] for name in PCIE}
    write_tree(machine, files | TOOLS, libraries=False)
    found = connect().readings()
    assert found == read_health(board)
    known = {reading.name for reading in found if reading.value is not None}
    assert known >= {"chip_temperature", "firmware", "boot_loader", "bm_smi"}


def test_health_of_a_machine_that_is_gone(connect):
    """Is unavailable, with the reason, and no error: a run can still write its last line."""
    host = connect()
    present = host.readings()
    host.close()
    gone = host.readings()
    assert [reading.name for reading in gone] == [reading.name for reading in present]
    assert {(reading.value, reading.why_unavailable) for reading in gone} == {
        (None, "the connection to board was closed")
    }


def test_an_idle_engine_notices_a_cut(connect, server):
    """Between two cases: it is not alive, closing it is no error, and no case has to fail."""
    host = connect()
    with raw_worker(host) as worker:
        worker.request("starting", do="close")
        engine = engine_of(host, worker)
        assert engine.alive
        server.network.cut()
        assert host._connection.lost()
        assert not engine.alive
        engine.close()
    assert host.upload(Path(__file__))


def test_nothing_secret_gets_out(connect, server, tmp_path, monkeypatch, machine):
    """Neither keys nor the agent's socket nor a planted password in any process's arguments, environment or file."""
    planted = "Zq8-planted"
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / planted))
    monkeypatch.setenv("SSHPASS", planted)
    key = server.key.read_text().splitlines()[1]
    host = connect()
    host.upload(a_file(tmp_path, 1000))
    with raw_worker(host) as worker:
        worker.request("starting", do="close")
        running = [*psutil.Process().children(recursive=True), *server.processes()]
        lines = "\n".join(" ".join(process.cmdline()) for process in running)
        environments = "\n".join(json.dumps(process.environ()) for process in server.workers())
    assert "ssh" in lines
    told = "\n".join([str(host.address), host.description, host.label, host.name, lines, environments])
    written = [path for path in machine.rglob("*") if path.is_file()]
    written += [path for path in Path(tempfile.gettempdir()).glob("rwkv-ssh-*/*") if path.is_file()]
    for text in [told.encode(), *(path.read_bytes() for path in written)]:
        assert planted.encode() not in text
        assert key.encode() not in text


def test_the_package_is_the_same_every_time():
    """Its hash names it; all that the worker imports is in it."""
    package = worker_package()
    assert worker_package() == package
    names = zipfile.ZipFile(io.BytesIO(package)).namelist()
    assert {"far_side.py", "sensors.py", "runtime/worker.py", "runtime/framing.py"} <= set(names)


def test_the_constants_are_those_of_the_local_side():
    """What is written twice, because the other side has nothing of ours, says the same."""
    from harness.device import board, lock  # noqa: PLC0415 - only here

    assert far_side._SIMULATOR_SIGN == board._SIMULATOR_SIGN
    assert Path("/") / far_side._LOCK.format(number=0) == lock.BoardLock("board-0", lock.MACHINE_WIDE)._path


@pytest.fixture(scope="module")
def python38():
    """Path of a Python 3.8, as the ARM boards have it; its tests are skipped where there is none."""
    candidates = [shutil.which("python3.8"), *Path.home().glob(".pyenv/versions/3.8.*/bin/python")]
    for python in filter(None, candidates):
        run = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
        if run.stdout.startswith("Python 3.8."):
            return str(python)
    pytest.skip("no Python 3.8 here: neither python3.8 on the PATH nor one of pyenv's")


def test_the_other_side_runs_on_an_old_python(connect, python38, tmp_path, machine):
    """All its actions do: keep, receive, read and work."""
    write_tree(machine, PCIE | TOOLS, libraries=False)
    host = connect(python=python38)
    file = a_file(tmp_path, 100_000)
    assert Path(host.upload(file)).read_bytes() == file.read_bytes()
    assert host.readings() == read_health(Board(number=0, kind=BoardKind.PCIE, libraries=None, root=machine))
    with raw_worker(host) as worker:
        worker.request("starting", do="close")
        worker.close()


@pytest.mark.toolchain
def test_a_bmodel_runs_there(server, tmp_path, rwkv_bmodels):
    """The same bits as here; and cut in the middle, it is told, and runs again over a new connection."""
    lock = tmp_path / "tmp"
    lock.mkdir()
    with (
        Engine.open(Libraries.cmodel(rwkv_bmodels.libraries), [rwkv_bmodels.decode]) as engine,
        Session(engine) as session,
    ):
        expected = session.feed([1, 2])
    address = f"ssh://board/0?libsophon={quote(str(rwkv_bmodels.libraries))}&cache={quote(str(tmp_path / 'the cache'))}"
    with open_remote(address, config=server.config, root=str(tmp_path)) as host:
        engine = host.open_engine([rwkv_bmodels.decode])
        assert engine.versions.kind is Kind.CMODEL
        with Session(engine) as session:
            np.testing.assert_array_equal(session.feed([1, 2]), expected)
        session = Session(engine)
        threading.Timer(0.05, server.network.cut).start()
        with pytest.raises(ConnectionLost, match="the connection to board was lost"):
            session.feed([1] * 10_000)
        assert not engine.alive
        gone_within(server.workers(), 5)
        sent = host.sent_bytes
        with host.open_engine([rwkv_bmodels.decode]) as engine, Session(engine) as session:
            np.testing.assert_array_equal(session.feed([1, 2]), expected)
        assert host.sent_bytes == sent
    gone_within(server.workers(), 5)
