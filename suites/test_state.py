"""The recurrent state means the same to every graph: whole chunks by prefill, the rest by decode."""

import pytest

from compile.spec import GraphKind
from harness.drift import judge_drift
from harness.parity import judge_format
from harness.prompts import prompt
from harness.targets.base import Output
from harness.targets.bmodel import BmodelTarget, get_state, set_state
from runtime.session import Session

prefill = pytest.mark.graphs(GraphKind.PREFILL)


@prefill
def test_prefill_equals_decode(case, device, oracle, model, check, random_state):
    """T tokens at once and one by one lead to the same state, from a state that is not zero, and keep its format."""
    engine = device.engine(check, case, case.decode)
    tokens = prompt(model, case.graph.T, seed=2)
    at_once = BmodelTarget(engine, case.net).run(tokens, random_state)
    one_by_one = BmodelTarget(engine, case.decode.net).run(tokens, random_state)
    want = oracle.run(tokens, random_state)
    check.state(want, at_once.state)
    check.state(want, one_by_one.state)
    check.logits(one_by_one, at_once)
    judge_format(check, engine, case, at_once.state)


@prefill
def test_every_tail(case, device, oracle, model, check):
    """A prompt that is no multiple of the chunk ends in decode steps: every length of that tail is right."""
    engine = device.engine(check, case, case.decode)
    T = case.graph.T
    tokens = prompt(model, 2 * T - 1, seed=3)
    want = oracle.run(tokens)
    with Session(engine) as session:
        chunk = session.feed(tokens[:T])
        check.logits(want, Output((T - 1,), chunk[None], []))
        for position in range(T, len(tokens)):
            logits = session.feed(tokens[position : position + 1])
            check.logits(want, Output((position,), logits[None], []))
            check.state(oracle.run(tokens[: position + 1]), get_state(session))


@prefill
def test_feed_cuts_prompts(case, device, oracle, model, check, random_state):
    """Two chunks and a tail, cut by the runtime itself, from a state that is not zero."""
    engine = device.engine(check, case, case.decode)
    tokens = prompt(model, 2 * case.graph.T + 3, seed=4)
    want = oracle.run(tokens, random_state)
    with Session(engine) as session:
        set_state(engine, session, random_state)
        logits = session.feed(tokens)
        check.logits(want, Output((len(tokens) - 1,), logits[None], []))
        check.state(want, get_state(session))


@prefill
def test_sessions_are_independent(case, device, oracle, model, check):
    """Two streams fed in turn do not see each other, and a reset one starts anew."""
    engine = device.engine(check, case, case.decode)
    first, second = prompt(model, case.graph.T + 2, seed=5), prompt(model, case.graph.T + 2, seed=6)
    with Session(engine) as one, Session(engine) as other:
        for start, stop in ((0, case.graph.T), (case.graph.T, case.graph.T + 2)):
            one.feed(first[start:stop])
            other.feed(second[start:stop])
        check.state(oracle.run(first), get_state(one))
        check.state(oracle.run(second), get_state(other))
        one.reset()
        one.feed(second[:2])
        check.state(oracle.run(second[:2]), get_state(one))


@pytest.mark.graphs(GraphKind.DECODE)
def test_every_chunk_length(case, prefills, device, oracle, model, check, random_state):
    """The same text through every chunk length of the grid, the tail by decode, leads to the same state and logits."""
    if not prefills:
        pytest.skip("the grid has no prefill graph")
    engine = device.engine(check, case, *prefills)
    tokens = prompt(model, 2 * prefills[-1].graph.T + 1, seed=9)
    want = oracle.run(tokens, random_state)
    for one in prefills:
        T = one.graph.T
        whole = len(tokens) - len(tokens) % T
        with Session(engine) as session:
            set_state(engine, session, random_state)
            for start in range(0, whole, T):
                logits = session.run(one.net, tokens[start : start + T])
                check.logits(want, Output((start + T - 1,), logits[None], []))
            for position in range(whole, len(tokens)):
                logits = session.run(case.net, tokens[position : position + 1])
                check.logits(want, Output((position,), logits[None], []))
            check.state(want, get_state(session))


@prefill
def test_from_tuned_state(case, device, oracle, model, check):
    """From a state that training made, chunk and tail go on as the reference does."""
    if model.tuned is None:
        pytest.skip(f"no tuned state of {model.checkpoint.name} is known (suites/checkpoints.toml)")
    engine = device.engine(check, case, case.decode)
    start, tokens = model.tuned.state.arrays(), prompt(model, case.graph.T + 2, seed=10)
    want = oracle.run(tokens, start)
    with Session(engine) as session:
        set_state(engine, session, start)
        logits = session.feed(tokens)
        check.logits(want, Output((len(tokens) - 1,), logits[None], []))
        check.state(want, get_state(session))


@prefill
def test_saved_and_loaded(case, device, oracle, model, check, tmp_path):
    """A saved state comes back bit for bit, in another session, and that one goes on with the text."""
    engine = device.engine(check, case, case.decode)
    T, file = case.graph.T, tmp_path / "state.safetensors"
    tokens = prompt(model, 2 * T + 1, seed=14)
    with Session(engine) as one, Session(engine) as other:
        one.feed(tokens[: T + 1])
        one.save(file)
        other.feed(tokens[-2:])
        other.load(file)
        check.equal("exact", "exact" if one.compare(other).exact else "changed", "state through a file")
        logits = other.feed(tokens[T + 1 :])
        want = oracle.run(tokens)
        check.logits(want, Output((len(tokens) - 1,), logits[None], []))
        check.state(want, get_state(other))


@prefill
def test_forked(case, device, oracle, model, check):
    """A fork begins with the same state, bit for bit; then both go their own ways, each as the reference does."""
    engine = device.engine(check, case, case.decode)
    stem, ways = prompt(model, case.graph.T + 1, seed=15), [prompt(model, 2, seed=seed) for seed in (16, 17)]
    with Session(engine) as one:
        one.feed(stem)
        with one.fork() as other:
            check.equal("exact", "exact" if one.compare(other).exact else "changed", "state of a fork")
            for session, way in zip((one, other), ways, strict=True):
                logits = session.feed(way)
                want = oracle.run([*stem, *way])
                check.logits(want, Output((len(stem) + len(way) - 1,), logits[None], []))
            for session, way in zip((one, other), ways, strict=True):
                check.state(oracle.run([*stem, *way]), get_state(session))


@pytest.mark.extra
@pytest.mark.graphs(GraphKind.PREFILL_ALL, only="longest")
def test_drift(case, device, oracle, model, check):
    """Over 4,096 tokens the divergence stays where it began: nothing adds up from chunk to chunk."""
    judge_drift(check, device.engine(check, case), case, model, oracle)
