"""Any static bmodel as a function of arrays: for graphs that are no whole model. Sessions are for those that are."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from runtime import cmodel
from runtime.binding import Dtype
from runtime.engine import open_device
from runtime.faults import BadBmodel, RuntimeFault
from runtime.libraries import Kind
from runtime.nets import from_floats, to_floats
from runtime.process import WORKER, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from runtime.engine import Versions
    from runtime.libraries import Libraries

_FLOATS = frozenset({Dtype.F32, Dtype.F16, Dtype.BF16})


@dataclass(frozen=True, slots=True)
class _Port:
    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PlainNet:
    """A loaded net: its name, and what goes in and comes out, in the order of the graph."""

    name: str
    inputs: tuple[_Port, ...]
    outputs: tuple[_Port, ...]


class PlainEngine:
    """One worker with an open device, into which bmodels are loaded one after the other. Used from one thread.

    Attributes:
        versions: libraries, chip and driver.
    """

    def __init__(self, libraries: Libraries, *, device: int = 0, timeout_s: float = 600.0) -> None:
        """Start the worker and open the device.

        Raises:
            RuntimeFault: as :meth:`runtime.engine.Engine.open` does.
        """
        self._worker = WorkerProcess(
            timeout_s=timeout_s,
            pausing=libraries.kind is Kind.CMODEL,
            variables=cmodel.variables(libraries.memory_bytes),
            command=WORKER,
        )
        try:
            self.versions: Versions = open_device(self._worker, libraries, device, local=True)
        except BaseException:
            self._worker.kill()
            raise

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the worker; an error that is under way matters more than one of closing."""
        if error is None:
            self.close()
            return
        with suppress(RuntimeFault):
            self.close()

    @property
    def alive(self) -> bool:
        """Whether it still answers; a net that takes it down leaves nothing for the nets after it."""
        return self._worker.alive

    def load(self, bmodel: Path) -> PlainNet:
        """Load a bmodel of one static net whose name is new.

        Raises:
            BadBmodel: it is none, or is refused.
            WorkerDied, WorkerHung: loading took the worker down.
        """
        path = str(bmodel.absolute())
        self._worker.request(f"looking at {path}", do="check", bmodel=path)
        (net,) = self._worker.request(f"loading {path}", do="load", bmodel=path).fields["nets"]
        if net["is_dynamic"] or net["stages"] != 1:
            raise BadBmodel(f"net {net['name']} of {path} is dynamic or has several stages; compile it statically")
        return PlainNet(net["name"], tuple(map(_port, net["inputs"])), tuple(map(_port, net["outputs"])))

    def call(self, net: PlainNet, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Compute a net once.

        Args:
            net: from :meth:`load`.
            inputs: in the graph's order, of its shapes; rounded to the net's own types.

        Returns:
            The outputs in the graph's order, float32, or int32 where the net has integers.

        Raises:
            ValueError: another number of inputs, or other shapes.
            WorkerDied, WorkerHung: the net took the worker down.
        """
        given, wanted = [array.shape for array in inputs], [port.shape for port in net.inputs]
        if [np.prod(shape) for shape in given] != [np.prod(shape) for shape in wanted]:
            raise ValueError(f"{net.name} takes {wanted}, got {given}")
        payloads = [_to_bytes(array, port) for array, port in zip(inputs, net.inputs, strict=True)]
        sizes = [port.size_bytes for port in net.outputs]
        reply = self._worker.request(f"running {net.name}", payloads, do="call", net=net.name, sizes_bytes=sizes)
        return [_from_bytes(data, port) for data, port in zip(reply.payloads, net.outputs, strict=True)]

    def close(self) -> None:
        """End the worker; closing twice does nothing."""
        self._worker.close()


def _port(described: dict[str, Any]) -> _Port:
    try:
        dtype = Dtype(described["dtype"])
    except ValueError as error:
        raise BadBmodel(f"{described['name']} has the unknown type {described['dtype']}") from error
    if dtype not in _FLOATS and dtype is not Dtype.I32:
        raise BadBmodel(f"{described['name']} is {dtype.name}; only floats and I32 are known here")
    return _Port(described["name"], dtype, tuple(described["shape"]), described["bytes"])


def _to_bytes(array: np.ndarray, port: _Port) -> bytes:
    if port.dtype is Dtype.I32:
        return array.astype("<i4").tobytes()
    return from_floats(np.asarray(array, np.float32), port.dtype)


def _from_bytes(data: bytes | memoryview, port: _Port) -> np.ndarray:
    if port.dtype is Dtype.I32:
        return np.frombuffer(data, "<i4").reshape(port.shape).copy()
    return to_floats(data, port.dtype).reshape(port.shape)
