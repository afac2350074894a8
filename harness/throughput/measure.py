"""What is timed. Each function gives its samples one by one: what a caller does between two of them is not timed.

Inside the measured region: the call of the session, the tokens' way to the worker and the device, launch,
synchronisation, and the logits' way back to an array on the host (of the last position only). Outside of it: making
tokens (they are fixed before, and so is the next one: nobody samples), starting a session, copying a state, asking the
driver for its count, looking at the logits, writing the sample.

Who stops early closes the generator, which ends its session.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from harness.throughput.sample import Sample, What
from runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from runtime.engine import Engine


class Stopwatch:
    """Times calls of one engine.

    Attributes:
        engine: whose nets are called.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.perf_counter) -> None:
        """*clock* gives seconds."""
        self.engine = engine
        self._clock = clock

    def call(
        self, what: What, session: Session, tokens: Sequence[int], *, behind: int, repeat: int, net: str = ""
    ) -> Sample:
        """Feed *tokens* through *net*, or through whatever nets they take, and time that.

        Raises:
            RuntimeFault: it does not run.
        """
        feed = partial(session.run, net) if net else session.feed
        computed_before = self.engine.computed_s()
        start = self._clock()
        logits = feed(tokens)
        end = self._clock()
        computed_after = self.engine.computed_s()
        return Sample(
            what=what,
            net=net,
            tokens=len(tokens),
            behind=behind,
            repeat=repeat,
            end_to_end_s=end - start,
            launch_s=session.last_call_s if net else None,
            device_s=_difference(computed_before, computed_after),
            finite=bool(np.isfinite(logits).all()),
        )


def _difference(before: float | None, after: float | None) -> float | None:
    """A count that has not moved is nobody's: no call takes no time."""
    return None if before is None or after is None or after <= before else after - before


def first_call(watch: Stopwatch, net: str, tokens: Sequence[int]) -> Generator[Sample]:
    """Call a net once: the first time since it was loaded, if the caller has seen to that."""
    with Session(watch.engine) as session:
        yield watch.call(What.FIRST_CALL, session, tokens, behind=0, repeat=0, net=net)


def chunks(watch: Stopwatch, net: str, tokens: Sequence[int], *, T: int, repeats: int) -> Generator[Sample]:
    """Call a prefill net again and again, each time with the next *T* tokens."""
    with Session(watch.engine) as session:
        for repeat in range(repeats):
            start = repeat * T
            yield watch.call(What.CHUNK, session, tokens[start : start + T], behind=start, repeat=repeat, net=net)


def prompts(
    watch: Stopwatch, decode: str, tokens: Sequence[int], *, prompt: int, output: int, repeats: int
) -> Generator[Sample]:
    """Feed a prompt to a new session, then one token after another until logits of *output* tokens have come.

    The prompt goes in whole chunks through the longest net, its tail through decode.
    """
    for repeat in range(repeats):
        with Session(watch.engine) as session:
            yield watch.call(What.PROMPT, session, tokens[:prompt], behind=0, repeat=repeat)
            for behind in range(prompt, prompt + output - 1):
                yield watch.call(
                    What.OUTPUT,
                    session,
                    tokens[behind : behind + 1],
                    behind=behind,
                    repeat=repeat,
                    net=decode,
                )


def windows(
    watch: Stopwatch, decode: str, tokens: Sequence[int], *, depth: int, steps: int, repeats: int
) -> Generator[Sample]:
    """Decode *steps* tokens, the first of them with *depth* tokens behind; every repeat from the same state.

    The depth is reached by feeding its tokens, through the longest net first.
    """
    with Session(watch.engine) as session:
        if depth:
            session.feed(tokens[:depth])
        state = session.get_state()
        for repeat in range(repeats):
            session.set_state(state)
            for behind in range(depth, depth + steps):
                yield watch.call(
                    What.STEP, session, tokens[behind : behind + 1], behind=behind, repeat=repeat, net=decode
                )
