"""States in place and other ways to address inputs and outputs: the same numbers to the bit, on the simulator."""

import numpy as np
import pytest
import torch

from compile.options import ADDRESS_MODES, Option
from harness.cases import parse_case
from harness.checkpoints import open_model
from harness.device.place import open_place
from harness.jobs import compile_case
from harness.parity import any_tokens
from harness.paths import cache_folder
from harness.targets.bmodel import BmodelTarget
from reference.state import State


@pytest.fixture(scope="module")
def computed(toolchain):
    """Which bmodel a case has, and what it gives for two calls from a state that is not zero; each case is run once."""
    model = open_model(None)
    start = State.random(model.checkpoint.shape, seed=0, dtype=torch.float32).arrays()
    known = {}

    def run(name):
        if name not in known:
            case = parse_case(name)
            bmodel = compile_case(case, model, toolchain, cache_folder())
            tokens = any_tokens(model.checkpoint.shape.n_vocab, 2 * case.graph.T)
            with open_place("cmodel", None, toolchain.libraries).open([bmodel.path]) as engine:
                known[name] = bmodel.result.undated_sha256, BmodelTarget(engine, case.net).run(tokens, start)
        return known[name]

    return run


@pytest.mark.long
@pytest.mark.toolchain
@pytest.mark.parametrize("option", ["same_addr", *sorted(mode.value for mode in ADDRESS_MODES - {Option.IN_REUSE})])
@pytest.mark.parametrize("graph", ["decode", "prefill_all_16"])
def test_to_the_bit(computed, graph, option):
    """A next state at the address of its state overwrites nothing that is still to be read, in no call.

    No hazard check of the compiler was seen, so that only the numbers tell.
    Of in_reuse nothing is computed: the runtime refuses its mode by number.
    """
    (plain, want), (other_file, got) = (computed(f"{graph}-F16-chunk{extra}") for extra in ("", f"+{option}"))
    assert other_file != plain, f"{option} changes nothing"
    assert got.logits.tobytes() == want.logits.tobytes()
    for i, (one, other) in enumerate(zip(want.state, got.state, strict=True)):
        assert np.isfinite(one).all()
        assert one.tobytes() == other.tobytes(), f"state {i} differs by up to {np.abs(one - other).max()}"
