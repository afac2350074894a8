"""An OpenSSH server of our own on the loopback device, and a network before it that can be cut."""

import getpass
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

PIECE = 1 << 16


def keygen(path):
    """Make a key pair without a passphrase."""
    subprocess.run([shutil.which("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)
    return path


class Forwarder:
    """A network between client and server, which can be cut.

    Attributes:
        port: where it listens.
        sent: bytes that went to the server so far.
        cut_after: after so many more bytes to the server, cut.
        silent: whether a cut is one that nobody is told of.
    """

    def __init__(self, target):
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs = []
        self.port = self._listener.getsockname()[1]
        self.sent = 0
        self.cut_after = None
        self.silent = False
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self):
        """Cut every connection that is open."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with suppress(OSError):  # closed already
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)
                    end.close()

    def close(self):
        """Cut everything and let nobody in."""
        self._listener.close()
        self.cut()

    def _serve(self):
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._pairs.append((client, server))
            threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source, sink, counting):
        with suppress(OSError):
            while data := source.recv(PIECE):
                while self.silent:
                    time.sleep(0.1)
                if counting and self.cut_after is not None:
                    data, self.cut_after = data[: self.cut_after], self.cut_after - len(data)
                if counting:
                    self.sent += len(data)
                sink.sendall(data)
                if counting and self.cut_after is not None and self.cut_after <= 0:
                    self.cut_after = None
                    self.cut()
            sink.shutdown(socket.SHUT_WR)


class Server:
    """An OpenSSH server and what a client needs to know of it.

    Attributes:
        network: what is between the two.
        config: a client's configuration in which ``board`` is this server.
    """

    def __init__(self, folder, sshd):
        folder.mkdir()
        self.folder = folder
        self.host_key = keygen(folder / "host key")
        self.key = keygen(folder / "user key")
        shutil.copy(f"{self.key}.pub", folder / "authorized keys")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        settings = folder / "sshd_config"
        settings.write_text(
            f'ListenAddress 127.0.0.1:{self.port}\nHostKey "{self.host_key}"\n'
            f'AuthorizedKeysFile "{folder}/authorized keys"\nPidFile none\nUsePAM no\nStrictModes no\n'
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 50\n"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # a server of root's insists on it
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen([sshd, "-D", "-e", "-f", settings], stderr=log)
        self._wait_until_it_listens()
        self.network = Forwarder(self.port)
        self.known = folder / "known hosts"
        self.known.write_text(f"the-board {Path(f'{self.host_key}.pub').read_text()}")
        self.config = self.configure("config")

    def configure(self, name, *, port=None, key=None, known=None, alias="the-board"):
        """Write a client's configuration."""
        path = self.folder / name
        path.write_text(
            f"Host board\n  HostName 127.0.0.1\n  Port {port or self.network.port}\n  User {getpass.getuser()}\n"
            f'  IdentityFile "{key or self.key}"\n  IdentitiesOnly yes\n  IdentityAgent none\n'
            f'  UserKnownHostsFile "{known or self.known}"\n  GlobalKnownHostsFile none\n'
            + (f"  HostKeyAlias {alias}\n" if alias else "")
        )
        return path

    def processes(self):
        """What runs there for clients."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def workers(self):
        """Workers there, and who watches over them; not those that others may run on this machine."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if process.cmdline()[1:3] in (["-m", "runtime.worker"], ["-m", "far_side"]):
                    found.append(process)
        return found

    def worker(self):
        """The one worker there."""
        (worker,) = [process for process in self.workers() if process.cmdline()[2] == "runtime.worker"]
        return worker

    def end(self):
        """End the server and what runs there."""
        children = self.processes()
        self._process.terminate()
        self._process.wait()
        self.network.close()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()

    def _wait_until_it_listens(self):
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                return


@contextmanager
def an_ssh_server(folder):
    """A server as long as it is needed; without OpenSSH tests skip, and in CI they fail."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("ssh") is None:
        message = "no sshd or no ssh: install openssh-server and openssh-client"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    server = Server(folder, sshd)
    try:
        yield server
    finally:
        server.end()


def gone_within(processes, seconds=20):
    """See that processes end."""
    _, alive = psutil.wait_procs(list(processes), timeout=seconds)
    assert not alive, [process.cmdline() for process in alive]
