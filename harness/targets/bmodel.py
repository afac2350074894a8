"""Bmodels on the simulator or on a board as a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.targets.base import Output, Score, StateArrays
from runtime.piece import put_together, take_apart
from runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.targets.base import Text
    from runtime.binding import Dtype
    from runtime.engine import Engine


class BmodelTarget:
    """One net of an open engine, called again and again; the state stays on the device between the calls."""

    def __init__(self, engine: Engine, net: str) -> None:
        """*net* is the name of one of the engine's nets."""
        self._engine = engine
        self.net = next(n for n in engine.nets if n.name == net)

    def run(self, tokens: Sequence[int], state: StateArrays | None = None) -> Output:
        """Logits of the positions that the net gives.

        Raises:
            ValueError: the number of tokens is not a multiple of the net's; nothing is ever padded.
        """
        T = self.net.tokens
        if not tokens or len(tokens) % T:
            raise ValueError(f"{len(tokens)} tokens, but net {self.net.name} takes a multiple of {T}")
        rows: list[np.ndarray] = []
        positions: list[int] = []
        with Session(self._engine) as session:
            if state is not None:
                set_state(self._engine, session, state)
            for start in range(0, len(tokens), T):
                rows.append(np.atleast_2d(session.run(self.net.name, tokens[start : start + T])))
                first = start if self.net.every_position else start + T - 1
                positions += range(first, start + T)
            return Output(tuple(positions), np.concatenate(rows), get_state(session))


@dataclass(frozen=True, slots=True)
class BmodelScorer:
    """A whole model on an open engine: prompts through the longest prefill nets that fit, the rest through decode.

    Attributes:
        engine: with a decode net and any number of prefill nets loaded.
    """

    engine: Engine
    identity: dict[str, str]
    description: str
    batch: int = 1

    def score(self, texts: Sequence[Text], state: StateArrays | None = None) -> list[Score]:
        """Score each text in a session of its own; see :class:`harness.targets.base.Scorer`."""
        scores = []
        for prompt, continuation in texts:
            with Session(self.engine) as session:
                if state is not None:
                    set_state(self.engine, session, state)
                rows = [session.feed(prompt), *(session.feed([token]) for token in continuation[:-1])]
            scores.append(Score.of(np.stack(rows), continuation))
        return scores


def set_state(engine: Engine, session: Session, state: StateArrays) -> None:
    """Give a session a state in the targets' common shapes; the nets' own may have another layout."""
    net = engine.nets[0]
    shapes = [net_state.shape for net_state in net.states]
    if net.pieces:
        session.set_state(put_together(state, net.pieces, shapes))
    else:
        session.set_state([array.reshape(shape) for array, shape in zip(state, shapes, strict=True)])


def get_state(session: Session) -> StateArrays:
    """A session's state in the targets' common shapes: the WKV matrices as they are, the shifts as vectors."""
    tensors = session.get_state()
    if session.pieces:
        return take_apart(tensors, session.pieces)
    return [array if i % 3 == 1 else array.reshape(-1) for i, array in enumerate(tensors)]


def wkv_type(engine: Engine) -> Dtype:
    """The type that the nets keep the WKV matrices in."""
    net = engine.nets[0]
    return net.states[net.pieces[1].state if net.pieces else 1].dtype
