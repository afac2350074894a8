"""Bmodels loaded on a device: what is there, and which versions of everything run it."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from runtime import cmodel, nets
from runtime.faults import RuntimeFault
from runtime.libraries import Kind, Libraries
from runtime.process import WORKER, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from runtime.framing import Message
    from runtime.nets import Floats, Net

    Assemble = Callable[[Sequence[tuple[Mapping[str, Any], str]]], tuple[Net, ...]]


@dataclass(frozen=True, slots=True)
class LibraryFile:
    """One library file."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """What ran, for a record's provenance."""

    kind: Kind
    device: int
    libbmlib: str
    """What the library says of its version; "unknown" for one that is too old to say."""
    libbmrt: str
    libraries: tuple[LibraryFile, ...]
    chip_id: int
    """0x1686 is BM1684X."""
    driver: int | None
    """None on the simulator."""
    runtime_flags: int | None
    """None where the library is too old to tell."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is in use."""

    device_bytes: int | None
    """On the device, to the MiB, whoever uses it; None where the library does not tell, as on the simulator."""
    host_peak_bytes: int
    """The most that was resident in the worker so far; on the simulator this holds the simulated chip's memory too."""


class Engine:
    """One worker process with one open device and its bmodels, to be used as a context manager and from one thread.

    The kernel kills the worker when the thread that opened the engine ends.

    Attributes:
        nets: the nets of all bmodels, in the order of loading.
        embedding: the table of those that take its rows in place of tokens, [V, C] float32; None where none does.
        versions: libraries, chip and driver.
        remarks: what is doubtful about bmodels and libraries together, in words.
    """

    def __init__(
        self,
        worker: WorkerProcess,
        loaded: tuple[Net, ...],
        versions: Versions,
        remarks: tuple[str, ...] = (),
        embedding: Floats | None = None,
    ) -> None:
        self._worker = worker
        self.remarks = remarks
        self.embedding = embedding
        self.nets = loaded
        self.versions = versions

    @classmethod
    def open(
        cls,
        libraries: Libraries,
        bmodels: Sequence[Path],
        *,
        device: int = 0,
        timeout_s: float = 600.0,
        command: Sequence[str] = WORKER,
        local: bool = True,
        assemble: Assemble = nets.assemble,
        embedding: Floats | None = None,
    ) -> Self:
        """Start a worker, open *device* in it and load *bmodels*.

        Args:
            libraries: those of a board, or the simulator's.
            bmodels: one file or more; each net keeps its own weights.
            device: number of the board's chip.
            timeout_s: limit for every single request to the worker; loading a bmodel is one.
            command: what starts the worker.
            local: whether *command* becomes the worker itself, on this machine.
            assemble: what reads the worker's descriptions of nets; another one than ours knows another contract.
            embedding: a row for each token id, [V, C], for nets that take rows in place of tokens, and only for them.

        Raises:
            LibraryMissing: the libraries are not where they should be.
            BadBmodel: a file is no bmodel, or its nets break the contract or do not fit together.
            OutOfDeviceMemory: the bmodels do not fit.
            DeviceError: the device does not open.
            WorkerDied: the libraries took the worker down.
            WorkerHung: a request took longer than *timeout_s*.
            ValueError: no bmodel was given; or no embedding though a net takes its rows, one of another shape than
                they need, or one that no net takes.
        """
        if not bmodels:
            raise ValueError("expected at least one bmodel")
        worker = WorkerProcess(
            timeout_s=timeout_s,
            pausing=local and libraries.kind is Kind.CMODEL,
            variables=cmodel.variables(libraries.memory_bytes),
            command=command,
        )
        try:
            paths = [str(Path(bmodel).absolute()) for bmodel in bmodels]
            for path in paths:
                worker.request("looking at a file", do="check", bmodel=path)
            versions = open_device(worker, libraries, device, local=local)
            loaded, remarks = _load(worker, paths, assemble)
            _check_embedding(loaded, embedding)
            return cls(worker, loaded, versions, remarks, embedding)
        except RuntimeFault:
            with suppress(RuntimeFault):
                worker.close()
            raise
        except BaseException:
            worker.kill()
            raise

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine; an error that is under way matters more than one of closing."""
        if error is None:
            self.close()
            return
        with suppress(RuntimeFault):
            self.close()

    @property
    def alive(self) -> bool:
        """Whether it still answers; after WorkerDied or WorkerHung only a new engine does."""
        return self._worker.alive

    def request(self, doing: str, payloads: Sequence[bytes] = (), **fields: Any) -> Message:
        """Pass a request to the worker, for sessions; see `WorkerProcess.request`."""
        return self._worker.request(doing, payloads, **fields)

    def computed_s(self) -> float | None:
        """Time that the chip has computed for this engine so far, in seconds; a call's own is a difference of two.

        This is the driver's count, in steps of 1 µs. None where nobody counts: on the simulator, with a library that
        lacks the function, and before the first launch.
        """
        seconds: float | None = self.request("asking how long the chip has computed", do="computed").fields["seconds"]
        return seconds

    def memory(self) -> Memory:
        """How much memory is in use on the device and in the worker."""
        return Memory(**self.request("asking for the memory in use", do="memory").fields)

    def leave(self) -> None:
        """Free the device's memory, and let the worker end by itself; :meth:`close` waits for that.

        Raises:
            RuntimeFault: of any class, as :meth:`request` does.
        """
        self._worker.leave()

    def close(self) -> None:
        """Free the device's memory and end the worker; closing twice does nothing.

        Raises:
            WorkerDied: the worker did not end well, for example because device memory leaked.
            WorkerHung: it did not end in time, and was killed.
        """
        self._worker.close()


def open_device(worker: WorkerProcess, libraries: Libraries, device: int, *, local: bool) -> Versions:
    """Have *worker* open a device; see :meth:`Engine.open`."""
    simulated = libraries.kind is Kind.CMODEL
    # Ours rather than the worker's, where it can be: a worker that is killed does not clean up.
    with tempfile.TemporaryDirectory(prefix="simulator-") if simulated and local else nullcontext() as scratch:
        found = worker.request(
            f"opening device {device} with the libraries in {libraries.folder}",
            do="open",
            folder=str(libraries.folder.absolute()),
            device=device,
            simulated=simulated,
            scratch=scratch,
        ).fields["versions"]
    files = tuple(LibraryFile(**file) for file in found.pop("libraries"))
    return Versions(kind=libraries.kind, device=device, libraries=files, **found)


def _load(worker: WorkerProcess, bmodels: Sequence[str], assemble: Assemble) -> tuple[tuple[Net, ...], tuple[str, ...]]:
    described: list[tuple[dict[str, Any], str]] = []
    remarks: dict[str, None] = {}  # in order, each once
    for bmodel in bmodels:
        found = worker.request(f"loading {bmodel}", do="load", bmodel=bmodel).fields
        described += [(net, bmodel) for net in found["nets"]]
        remarks |= {found["remark"]: None} if found["remark"] else {}
    loaded = assemble(described)
    nets.check_agreement(loaded)
    for net in loaded:
        worker.request(
            f"reserving memory for tokens and logits of {net.name}",
            do="prepare",
            net=net.name,
            edges=dict(net.edges),
            parts=net.parts,
        )
    return loaded, tuple(remarks)


def _check_embedding(loaded: Sequence[Net], embedding: Floats | None) -> None:
    """See that the nets that take rows of the embedding can have them, and that there are such where it is given."""
    if embedding is not None and all(net.rows is None for net in loaded):
        raise ValueError(f"an embedding was given, but nets {[net.name for net in loaded]} take tokens: it is in them")
    for net in loaded:
        if net.rows is None:
            continue
        expected = net.vocabulary, net.rows.width
        takes = f"{net.name} of {net.bmodel} takes rows of the embedding in place of tokens"
        if embedding is None:
            raise ValueError(f"{takes}, and none was given: it should be a table of shape {list(expected)}")
        if embedding.shape != expected:
            raise ValueError(f"{takes}, of a table of shape {list(expected)}, but got {list(embedding.shape)}")
