"""How fast it is; what each figure means stands in docs/throughput.md. No speed is right or wrong here.

On the simulator the same code runs, briefly, and every figure is called simulator_…: it tells nothing about a chip.
"""

import pytest

from compile.spec import GraphKind
from harness.throughput.figures import chunk_figures, prompt_figures, warm_up_ms, window_figures
from harness.throughput.measure import chunks, first_call, prompts, windows


@pytest.mark.graphs(GraphKind.PREFILL)
def test_prefill(case, bench, check):
    """Whole chunks one after another; then prompts, until their first logits, and token by token on."""
    plan, T, net, decode = bench.plan, case.graph.T, case.net, case.decode.net
    prompt, output = plan.prompt_tokens(T), plan.steps
    tokens = bench.tokens(max(plan.repeats * T, prompt + output))
    watch = bench.load(case, case.decode)
    (first,) = bench.keep(first_call(watch, net, tokens[:T]), count=1)
    calls = bench.keep(chunks(watch, net, tokens, T=T, repeats=plan.repeats), count=plan.repeats)
    bench.keep(first_call(watch, decode, tokens[:1]), count=1)
    asked = prompts(watch, decode, tokens, prompt=prompt, output=output, repeats=plan.repeats)
    answered = bench.keep(asked, count=plan.repeats * output)
    check.metrics["prompt_tokens"] = prompt
    bench.tell({"warm_up_ms": warm_up_ms(first, calls), **chunk_figures(calls), **prompt_figures(answered)})
    bench.tell_memory(watch)


@pytest.mark.graphs(GraphKind.DECODE)
def test_decode(case, bench):
    """One token after another, in windows that begin with none, hundreds and thousands of tokens behind."""
    plan, net = bench.plan, case.net
    tokens = bench.tokens(max(plan.depths) + plan.steps)
    watch = bench.load(case, *bench.longest_prefill())
    (first,) = bench.keep(first_call(watch, net, tokens[:1]), count=1)
    every = []
    for depth in plan.depths:
        window = windows(watch, net, tokens, depth=depth, steps=plan.steps, repeats=plan.repeats)
        steps = bench.keep(window, count=plan.repeats * plan.steps)
        bench.tell(window_figures(steps, depth))
        every += steps
    bench.tell({"warm_up_ms": warm_up_ms(first, every)})
    bench.tell_memory(watch)


@pytest.mark.boards
@pytest.mark.graphs(GraphKind.DECODE, GraphKind.PREFILL)
def test_call(case, bench, benchmark):
    """A call as pytest-benchmark times it, for its files and comparisons of runs."""
    bench.rounds(benchmark, bench.load(case), case.net, bench.tokens(case.graph.T))
