"""What makes no sense is refused in clear words and harms nobody; what is broken shows, and is not hidden."""

import numpy as np
import pytest

from compile.spec import GraphKind
from harness.prompts import prompt
from harness.robustness import judge_as_before, judge_refusals, tell_hidden
from harness.targets.bmodel import get_state, set_state
from runtime.session import Session

prefill = pytest.mark.graphs(GraphKind.PREFILL)


@prefill
def test_token_ids(case, device, oracle, model, check):
    """Ids outside the vocabulary, wherever they stand, are refused; the session goes on as if nothing had been."""
    engine = device.engine(check, case, case.decode)
    n_vocab, T = model.checkpoint.shape.n_vocab, case.graph.T
    with Session(engine) as session:
        session.feed(prompt(model, T, seed=11))
        for wrong in (-1, n_vocab, 2**31, -(2**31) - 1, 2**64):
            for at in (0, T - 1, T):
                tokens = prompt(model, T + 1, seed=12)
                tokens[at] = wrong
                words = f"token {wrong} at position {at} is outside the vocabulary [0, {n_vocab})"
                judge_refusals(check, lambda tokens=tokens: session.feed(tokens), words)
        judge_as_before(check, oracle, session, prompt(model, T, seed=11), prompt(model, 2, seed=13))


@prefill
def test_lengths(case, device, oracle, model, check):
    """No tokens at all, and more or fewer than a net takes, are refused: nothing is ever padded."""
    engine = device.engine(check, case, case.decode)
    T, before = case.graph.T, prompt(model, case.graph.T, seed=11)
    with Session(engine) as session:
        session.feed(before)
        judge_refusals(check, lambda: session.feed([]), "expected at least one token")
        for length in (1, T - 1, T + 1, 2 * T):
            tokens = prompt(model, length, seed=12)
            judge_refusals(check, lambda tokens=tokens: session.run(case.net, tokens), f"takes {T} tokens a call")
        judge_refusals(check, lambda: session.run("prefill_of_nothing", before), "no net is named")
        judge_as_before(check, oracle, session, before, prompt(model, 2, seed=13))


@prefill
def test_shapes_of_states(case, device, oracle, model, check):
    """States that lack an array, have one too many, or one of another shape, are refused; the state stays."""
    engine = device.engine(check, case, case.decode)
    before = prompt(model, case.graph.T, seed=11)
    with Session(engine) as session:
        session.feed(before)
        state = session.get_state()
        cut = [array[..., :-1] for array in state]
        for wrong in (state[:-1], [*state, state[0]], [], cut, [state[1], state[0], *state[2:]]):
            judge_refusals(check, lambda wrong=wrong: session.set_state(wrong), "expected states of shapes")
        judge_as_before(check, oracle, session, before, prompt(model, 2, seed=13))


@prefill
def test_nan_shows(case, device, oracle, model, check):
    """One NaN in a state is there in the logits of both graphs and stays in the matrix; other sessions never see it.

    But for one way out, which is counted and told: between the shift of the channel-mix and the logits stands a ReLU,
    and a ReLU that is a maximum may give 0 for NaN, as the simulator's does.
    """
    engine = device.engine(check, case, case.decode)
    T, good = case.graph.T, prompt(model, case.graph.T, seed=11)
    with Session(engine) as sick, Session(engine) as well:
        well.feed(good)
        for kind, name in enumerate(("att.shift", "att.state", "ffn.shift")):
            for net, length in ((case.net, T), (case.decode.net, 1)):
                state = [np.zeros_like(array) for array in get_state(sick)]
                state[kind].flat[3] = np.nan
                set_state(engine, sick, state)
                logits = sick.run(net, prompt(model, length, seed=12))
                hidden = bool(np.isfinite(logits).all())
                if name == "ffn.shift":
                    tell_hidden(check, net, hidden=hidden)
                else:
                    check.equal("shown", "hidden" if hidden else "shown", f"NaN in {name}, by {net}")
                if name == "att.state":  # the shifts are replaced by each token, the matrix is not
                    after = get_state(sick)[kind]
                    check.equal("kept", "lost" if np.isfinite(after).all() else "kept", f"NaN in {name}, by {net}")
        judge_as_before(check, oracle, well, good, prompt(model, 2, seed=13))
