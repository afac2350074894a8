"""An engine whose nets are computed in torch: it stands where the suites have bmodels on the simulator or a board."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from compile.spec import GraphKind
from reference.state import State
from reports.schema import Stage
from runtime.binding import Dtype
from runtime.framing import Message
from runtime.nets import Net
from runtime.nets import State as StatePort

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from harness.cases import Case
    from harness.check import Check
    from reference.shape import ModelShape


class Computes(Protocol):
    """What a net is made of."""

    def forward(self, tokens: Sequence[int], state: State) -> tuple[Tensor, State]:
        """Logits ``[T, V]`` and the state after the last token."""
        ...


class TorchEngine:
    """Answers the requests of :class:`runtime.session.Session` as a worker with bmodels does.

    A faulty engine overrides :meth:`launch`, or one of the requests.

    Attributes:
        nets: what is loaded.
        states: by session.
    """

    alive = True
    remarks = ()

    def __init__(self, shape: ModelShape, cases: Sequence[Case], computes: Mapping[GraphKind, Computes]) -> None:
        """Load a net for each case; *computes* says what its kind of graph computes."""
        self.nets = tuple(_net(shape, case) for case in cases)
        self.shape = shape
        self.states: dict[int, State] = {}
        self._computes = {case.graph.name: computes[case.graph.kind] for case in cases}
        self._net = {net.name: net for net in self.nets}
        self._started = 0

    def request(self, _: str, payloads: Sequence[bytes] = (), **fields: object) -> Message:
        """Do what a worker does of the same request."""
        do: Callable[..., Message] = getattr(self, f"do_{fields.pop('do')}")
        return do(payloads, **fields)

    def do_start(self, _: Sequence[bytes], sizes_bytes: Sequence[int]) -> Message:
        """A new session."""
        assert len(sizes_bytes) == 3 * self.shape.n_layer
        self._started += 1
        self.states[self._started] = State.zeros(self.shape, torch.float32)
        return Message({"session": self._started}, [])

    def do_clear(self, _: Sequence[bytes], session: int) -> Message:
        """Back to the zero state."""
        self.states[session] = State.zeros(self.shape, torch.float32)
        return Message({}, [])

    def do_read(self, _: Sequence[bytes], session: int) -> Message:
        """The session's state."""
        return Message({}, [array.tobytes() for array in self.states[session].arrays()])

    def do_write(self, payloads: Sequence[bytes], session: int) -> Message:
        """Put a state in."""
        ports = self.nets[0].states
        arrays = [np.frombuffer(d, np.float32).reshape(p.shape).copy() for d, p in zip(payloads, ports, strict=True)]
        self.states[session] = State.from_arrays(arrays, torch.float32)
        return Message({}, [])

    def do_fork(self, _: Sequence[bytes], session: int) -> Message:
        """Another session with the same state."""
        self._started += 1
        self.states[self._started] = self.states[session]
        return Message({"session": self._started}, [])

    def do_end(self, _: Sequence[bytes], session: int) -> Message:
        """Forget the session."""
        del self.states[session]
        return Message({}, [])

    def do_run(self, payloads: Sequence[bytes], session: int, net: str) -> Message:
        """Call a net."""
        tokens = np.frombuffer(payloads[0], "<i4").tolist()
        logits, self.states[session] = self.launch(session, self._net[net], tokens)
        return Message({"seconds": 0.0}, [logits.to(torch.float32).numpy().tobytes()])

    def launch(self, session: int, net: Net, tokens: list[int]) -> tuple[Tensor, State]:
        """Logits that the net gives, ``[T, V]`` or ``[1, V]``, and the session's next state."""
        logits, after = self.compute(net, tokens, self.states[session])
        return logits if net.every_position else logits[-1:], after

    def compute(self, net: Net, tokens: Sequence[int], state: State) -> tuple[Tensor, State]:
        """Logits of every position and the state after the last."""
        return self._computes[net.name].forward(tokens, state)


class TorchDevice:
    """Opens engines for the suites, in the place of a run with a compiler behind it."""

    def __init__(self, engine: type[TorchEngine], shape: ModelShape, computes: Mapping[GraphKind, Computes]) -> None:
        self._engine = engine
        self._shape = shape
        self._computes = computes

    def engine(self, check: Check, *cases: Case) -> TorchEngine:
        """An engine with the nets of *cases*."""
        check.stage = Stage.RUN
        return self._engine(self._shape, cases, self._computes)


def _net(shape: ModelShape, case: Case) -> Net:
    C, H, N = shape.n_embd, shape.n_head, shape.head_size
    sizes = ((C,), (H, N, N), (C,)) * shape.n_layer
    return Net(
        name=case.graph.name,
        bmodel="",
        tokens=case.graph.T,
        vocabulary=shape.n_vocab,
        every_position=case.graph.kind is not GraphKind.PREFILL,
        logits_dtype=Dtype.F32,
        states=tuple(StatePort(size, Dtype.F32) for size in sizes),
        addr_mode=0,
        parts=(),
        edges=(),
    )
