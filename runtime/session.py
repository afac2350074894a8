"""A stream of tokens through an engine's nets, with the recurrent state in device memory."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Self

import numpy as np

from runtime import state_file
from runtime.faults import RuntimeFault
from runtime.nets import from_floats, to_floats
from runtime.states import compare

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from runtime.engine import Engine
    from runtime.nets import Floats, Net
    from runtime.states import Difference


class Session:
    """One recurrent state and what is fed to it. Several sessions of one engine are independent of each other.

    Attributes:
        last_call_s: wall time of the last call of a net, launch to synchronisation, in the worker. On the simulator
            it says nothing about hardware.
        pieces: where each layer's states lie in the tensors that `get_state` gives; see `Net`.
    """

    def __init__(self, engine: Engine, *, started: int | None = None) -> None:
        """Start with the zero state; or take over the session of the worker's number *started*, for `fork`."""
        self._engine = engine
        self._states = engine.nets[0].states
        self.pieces = engine.nets[0].pieces
        self._id: int | None = started
        self.last_call_s = float("nan")
        if started is None:
            sizes = [state.size_bytes for state in self._states]
            self._id = engine.request("starting a session", do="start", sizes_bytes=sizes).fields["session"]

    def __enter__(self) -> Self:
        """Return the session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session; an error that is under way matters more than one of closing."""
        if error is None:
            self.close()
            return
        with suppress(RuntimeFault):
            self.close()

    def reset(self) -> None:
        """Go back to the zero state."""
        self._engine.request("clearing the state", do="clear", session=self._open_id())

    def fork(self) -> Session:
        """Start another session with a copy of this one's state, made on the device; both then go their own ways.

        Raises:
            OutOfDeviceMemory: there is no memory for another state; this session goes on.
            FunctionMissing: the libraries are too old to copy within the device; this session goes on.
        """
        reply = self._engine.request("forking a session", do="fork", session=self._open_id())
        return Session(self._engine, started=reply.fields["session"])

    def get_state(self) -> list[Floats]:
        """Copy the state from the device: one float32 array of its own shape for each, exact."""
        payloads = self._engine.request("reading the state", do="read", session=self._open_id()).payloads
        return [
            to_floats(data, state.dtype).reshape(state.shape)
            for data, state in zip(payloads, self._states, strict=True)
        ]

    def set_state(self, arrays: Sequence[Floats]) -> None:
        """Copy a state to the device, rounded to the type that the nets take.

        Raises:
            ValueError: number or shapes differ from what the nets take.
        """
        expected, found = [state.shape for state in self._states], [np.shape(array) for array in arrays]
        if expected != found:
            raise ValueError(f"expected states of shapes {expected}, got {found}")
        data = [
            from_floats(np.asarray(array, np.float32), state.dtype)
            for array, state in zip(arrays, self._states, strict=True)
        ]
        self._engine.request("writing the state", data, do="write", session=self._open_id())

    def save(self, path: Path) -> None:
        """Write the state to a file, exactly; see runtime.state_file.

        Raises:
            OSError: the file cannot be written; what was there before is untouched.
        """
        state_file.write(path, self.get_state(), self._states)

    def load(self, path: Path) -> None:
        """Go on from the state in the file *path*.

        Raises:
            BadStateFile: it is no saved state, is damaged, or is of another model; the state is what it was.
        """
        self.set_state(state_file.read(path, self._states))

    def compare(self, other: Session) -> Difference:
        """How *other*'s state differs from this one's; both are copied from the device.

        Raises:
            ValueError: their states have other shapes.
        """
        return compare(self.get_state(), other.get_state())

    def feed(self, tokens: Iterable[int]) -> Floats:
        """Feed *tokens* in whole chunks, the longest nets first, the tail through shorter ones. Nothing is padded.

        Returns:
            Logits after the last token, [V] float32.

        Raises:
            ValueError: no tokens; a token outside the vocabulary; a tail too short for every net. Nothing was fed.
            RuntimeFault: of every class; then the state is lost.
        """
        ids = self._check(tokens)
        *before, (net, chunk) = _plan(ids, self._engine.nets)
        for earlier_net, earlier_chunk in before:
            self._call(earlier_net, earlier_chunk)
        last_row: Floats = self._call(net, chunk)[-1]
        return last_row

    def feed_all(self, tokens: Iterable[int]) -> Floats:
        """Feed *tokens* like `feed`, through the nets that give logits of every position.

        Returns:
            Logits after each token, [T, V] float32.

        Raises:
            ValueError: as in `feed`.
            RuntimeFault: of every class; then the state is lost.
        """
        ids = self._check(tokens)
        plan = _plan(ids, [net for net in self._engine.nets if net.every_position])
        return np.concatenate([self._call(net, chunk) for net, chunk in plan])

    def run(self, net_name: str, tokens: Iterable[int]) -> Floats:
        """Call one net once, with exactly as many tokens as it takes.

        Returns:
            Its logits, float32: [T, V] of a net that gives every position of more than one, otherwise [V].

        Raises:
            ValueError: no such net; another number of tokens; a token outside the vocabulary.
            RuntimeFault: of every class; then the state is lost.
        """
        named = {net.name: net for net in self._engine.nets}
        if net_name not in named:
            raise ValueError(f"no net is named {net_name!r}; loaded are {sorted(named)}")
        net = named[net_name]
        ids = self._check(tokens)
        if len(ids) != net.tokens:
            raise ValueError(f"{net_name} takes {net.tokens} tokens a call, got {len(ids)}")
        logits = self._call(net, ids)
        return logits if len(logits) > 1 else logits[0]

    def close(self) -> None:
        """Give the state's memory back; closing twice, or after the engine, does nothing."""
        if self._id is not None and self._engine.alive:
            self._engine.request("ending a session", do="end", session=self._id)
        self._id = None

    def _open_id(self) -> int:
        if self._id is None:
            raise RuntimeFault("this session is closed")
        return self._id

    def _check(self, tokens: Iterable[int]) -> list[int]:
        ids = [int(token) for token in tokens]
        vocabulary = self._engine.nets[0].vocabulary
        if not ids:
            raise ValueError("expected at least one token")
        for position, token in enumerate(ids):
            if not 0 <= token < vocabulary:
                raise ValueError(f"token {token} at position {position} is outside the vocabulary [0, {vocabulary})")
        return ids

    def _fed(self, net: Net, ids: Sequence[int]) -> bytes:
        """What a net takes for its tokens: their ids, or their rows of the embedding, rounded to its type."""
        if net.rows is None or self._engine.embedding is None:
            return np.asarray(ids, "<i4").tobytes()
        return from_floats(np.asarray(self._engine.embedding[ids], np.float32), net.rows.dtype)

    def _call(self, net: Net, ids: Sequence[int]) -> Floats:
        """Logits [1 or T, V] of one call."""
        reply = self._engine.request(
            f"running {net.name}",
            [self._fed(net, ids)],
            do="run",
            session=self._open_id(),
            net=net.name,
        )
        self.last_call_s = reply.fields["seconds"]
        return to_floats(reply.payloads[0], net.logits_dtype).reshape(-1, net.vocabulary)


def _plan(ids: Sequence[int], nets: Sequence[Net]) -> list[tuple[Net, Sequence[int]]]:
    """Cut *ids* into chunks that fit *nets* exactly, the longest first."""
    plan = []
    start = 0
    # Of two nets as long as each other, the one with fewer logits to fetch.
    for net in sorted(nets, key=lambda net: (-net.tokens, net.every_position)):
        while len(ids) - start >= net.tokens:
            plan.append((net, ids[start : start + net.tokens]))
            start += net.tokens
    if start < len(ids):
        lengths = sorted({net.tokens for net in nets})
        raise ValueError(
            f"{len(ids) - start} of {len(ids)} tokens are left over, and nothing is ever padded: the nets take "
            f"{lengths} tokens a call. Load a decode net, which takes 1"
        )
    return plan
