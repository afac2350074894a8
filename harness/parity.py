"""Whether a compiled case gives the reference's numbers: the judgement of the suite ``parity``, for others too."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

from compile.options import Option
from compile.spec import GraphKind
from harness.cases import VARIANTS
from harness.prompts import prompt
from harness.targets.bmodel import BmodelTarget, wkv_type
from runtime.binding import Dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.cases import Case
    from harness.check import Check
    from harness.checkpoints import Model
    from harness.targets.base import Output, StateArrays, Target
    from runtime.engine import Engine

TOKENS = 64  # a multiple of every chunk length up to itself


REPEATED = 16
_NEARLY_ALL = 0.99


def judge_from_zero_state(
    check: Check, engine: Engine, case: Case, model: Model, oracle: Target, full: Target | None = None
) -> None:
    """From the zero state, over text: logits of every position that the graph gives, and the state after the last.

    Args:
        check: judges and remembers.
        engine: has the case's bmodel loaded.
        case: what is judged.
        model: the checkpoint.
        oracle: the reference of the case's precision (:func:`harness.oracle.oracle_for`).
        full: the reference with the checkpoint's own weights, where that is another one: recorded, not judged.

    Raises:
        AssertionError: outside the caps.
        RuntimeFault: it does not run.
    """
    __tracebackhide__ = True
    tokens = prompt(model, max(TOKENS, case.graph.T))
    got = _judge(check, engine, case, oracle, tokens, text=tokens)
    check.total((full or oracle).run(tokens).logits, got)


def judge_from_random_state(
    check: Check, engine: Engine, case: Case, model: Model, oracle: Target, state: StateArrays
) -> None:
    """The same from *state*, over any tokens of the whole vocabulary; the format of the state too.

    Half as many tokens as above where they are fed one by one, otherwise four times as many: 16 positions of prefill
    16, of which a mean is judged. Of fewer, nothing but the worst one counts, with a cap a hundred times as high: a
    weight of the last norm could be twice what it should be, and no check saw it (docs/detection.md, mutants). Longer
    chunks give fewer positions, and no mean: one position in 16 that is hard decides it.

    Text has few of a vocabulary's tokens, and those that a model finds easy. With the model that ships, computed in
    torch, a decay that is 1 % off has a mean KL of 2.9e-5 nats over text and of 2.0e-4 over any tokens; what is right
    and rounded to F16, 2e-6 and 2e-5.

    Raises:
        AssertionError, RuntimeFault: as above.
    """
    __tracebackhide__ = True
    tokens = any_tokens(model.checkpoint.shape.n_vocab, _enough(case))
    judge_format(check, engine, case, _judge(check, engine, case, oracle, tokens, state).state)


def _enough(case: Case) -> int:
    """Tokens to judge any state from: a multiple of the case's."""
    if case.graph.kind is GraphKind.DECODE:
        return TOKENS // 2
    T = case.graph.T
    return T * -(-4 * TOKENS // T)


def judge_one_token_repeated(
    check: Check, engine: Engine, case: Case, model: Model, oracle: Target, state: StateArrays
) -> None:
    """The same from *state*, over text with one token sixteen times in it: its key is removed and added each time.

    With a strong in-context rate, ways to compute a chunk that are exact on paper diverge here. Sixteen is a whole
    sub-chunk of the graphs. Of many more, or from the zero state, where the first outputs are tiny before the group
    norm, rounding alone reaches a KL of 1e-2.

    Raises:
        AssertionError, RuntimeFault: as above.
    """
    __tracebackhide__ = True
    text = prompt(model, max(TOKENS // 2, case.graph.T), seed=7)
    tokens = [*text[:REPEATED], *text[:1] * REPEATED, *text[REPEATED:]][: len(text)]
    _judge(check, engine, case, oracle, tokens, state)


def any_tokens(n_vocab: int, length: int) -> list[int]:
    """*length* ids, always the same: the last of the vocabulary, the first, and then any."""
    rng = random.Random(1)  # noqa: S311 - reproducible, not secret
    return [n_vocab - 1, 0, *(rng.randrange(n_vocab) for _ in range(length - 2))][:length]


def judge_format(check: Check, engine: Engine, case: Case, state: StateArrays) -> None:
    """The nets keep the WKV state in the type that the case says, and it holds numbers of that one, none narrower.

    Of somebody else's port its map says the type, which the nets were held against when they were loaded.

    Rounding it to fewer bits at each token is below the caps, and yet adds up over a long text. *state* must come from
    one that is not zero, whose numbers have all bits.

    Raises:
        AssertionError: nearly every number of a layer is one of a narrower type.
    """
    __tracebackhide__ = True
    kept = wkv_type(engine)
    if case.variant in VARIANTS:
        declared = Dtype.F16 if Option.F16_STATE in case.options else Dtype.F32
        check.equal(declared.name, kept.name, "type of the nets' WKV state")
    for i, matrices in enumerate(state[1::3]):
        check.equal(kept.name, narrowest(matrices.ravel()).name, f"layer {i}: WKV state in")


def narrowest(values: np.ndarray) -> Dtype:
    """The narrowest float type that holds nearly all of the float32 *values* exactly.

    Only those count that are not small beside the others: what a head has forgotten is exactly zero where a product of
    float16 underflows, and that says nothing of the format. Nor does a number that a call made of its own products
    alone, since those come out in float16: of a layer of the model that ships that are two in three after 64 tokens,
    the decay of the others keeping bits of float32. What is rounded as it is stored is rounded everywhere.
    """
    values = values[np.abs(values) > 0.01 * np.sqrt(np.mean(values.astype(np.float64) ** 2))]
    if (values.view(np.uint32) & 0xFFFF == 0).mean() >= _NEARLY_ALL:
        return Dtype.BF16
    with np.errstate(over="ignore"):
        return Dtype.F16 if (values == values.astype(np.float16)).mean() >= _NEARLY_ALL else Dtype.F32


def _judge(
    check: Check,
    engine: Engine,
    case: Case,
    oracle: Target,
    tokens: list[int],
    state: StateArrays | None = None,
    text: Sequence[int] = (),
) -> Output:
    __tracebackhide__ = True
    want = oracle.run(tokens, state)
    got = BmodelTarget(engine, case.net).run(tokens, state)
    check.logits(want, got, text=text)
    check.state(want, got.state)
    return got
