"""States in float16 as a declared axis: what is refused, its own caps, its format, and the bmodels that it makes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compile.compiler import RefusedError
from compile.graphs.model import Rwkv7
from compile.half_state import Rwkv7HalfState
from compile.lowering import Dialect
from compile.options import Option, OptionError, parse_options
from compile.spec import Quantization
from harness.calibrate import lines
from harness.cases import parse_case
from harness.check import Check
from harness.checkpoints import open_model
from harness.device.place import open_place
from harness.jobs import compile_case, job_of, part_jobs
from harness.limits import LIMITS, LimitsError, limits_for, load_limits
from harness.oracle import oracle_for
from harness.parity import any_tokens, judge_format, judge_from_random_state, narrowest
from harness.paths import cache_folder
from harness.targets.interpreter import open_interpreters
from harness.weights import weights_of_model
from reference.state import State
from runtime.binding import Dtype
from tests.gate_runs import a_record

PLAIN, HALF = parse_case("decode-F16-chunk"), parse_case("decode-F16-chunk+f16_state")
NUMBERS = np.random.default_rng(0).normal(size=(2, 64, 64)).astype(np.float32)


def kept_in(dtype):
    """An engine that says so of the WKV matrices."""
    state = SimpleNamespace(dtype=dtype)
    return SimpleNamespace(nets=[SimpleNamespace(pieces=(), states=(state, state, state))])


def state_of(values):
    """Of one layer, all of these numbers."""
    return [values[0, 0], values, values[0, 0]]


def test_the_case_decides():
    """The decode graph of a prefill has the state of its prefill, and an id says which."""
    prefill = parse_case("prefill_16-F16-chunk+f16_state")
    assert prefill.decode == HALF
    assert prefill.decode != PLAIN
    with pytest.raises(OptionError, match="float16 or float32"):
        parse_options(["f16_state", "float_output"])


@pytest.mark.parametrize(
    ("case", "dtype", "rounded", "says"),
    [
        (PLAIN, Dtype.F32, False, ""),
        (HALF, Dtype.F16, True, ""),
        (PLAIN, Dtype.F32, True, "WKV state in: got F16, but should be F32"),
        (PLAIN, Dtype.F16, True, "type of the nets' WKV state: got F16, but should be F32"),
        (HALF, Dtype.F32, False, "type of the nets' WKV state: got F32, but should be F16"),
        (HALF, Dtype.F32, True, "type of the nets' WKV state: got F32, but should be F16"),
    ],
)
def test_what_is_not_declared_is_a_fault(case, dtype, rounded, says):
    """Float16 under the name of float32 is one, and so is float16 that the net admits and the case does not."""
    values = NUMBERS.astype(np.float16).astype(np.float32) if rounded else NUMBERS
    if not says:
        judge_format(Check(), kept_in(dtype), case, state_of(values))
        return
    with pytest.raises(AssertionError, match=says):
        judge_format(Check(), kept_in(dtype), case, state_of(values))


def test_one_layer_tells():
    """One layer of several in float16 is a fault; a layer of which two numbers in three happen to be is none.

    Those that a chunk has made of its products alone are of float16, whatever the state is kept in.
    """
    rounded = NUMBERS.astype(np.float16).astype(np.float32)
    mixed = np.where(np.arange(NUMBERS.size).reshape(NUMBERS.shape) % 3 < 2, rounded, NUMBERS)
    judge_format(Check(), kept_in(Dtype.F32), PLAIN, [*state_of(NUMBERS), *state_of(mixed)])
    with pytest.raises(AssertionError, match="layer 1: WKV state in: got F16, but should be F32"):
        judge_format(Check(), kept_in(Dtype.F32), PLAIN, [*state_of(NUMBERS), *state_of(rounded)])


def test_caps_of_its_own(tmp_path):
    """They are another table's; where there is none, nothing is judged by the caps of a float32 state in its place."""
    every, _ = load_limits()
    assert limits_for(every, PLAIN) is every[Quantization.F16]
    assert limits_for(every, HALF) is every[Quantization.F16].f16_state
    with pytest.raises(LimitsError, match=r"no caps for BF16.f16_state: add a table \[BF16.f16_state\]"):
        limits_for(every, parse_case("decode-BF16-chunk+f16_state"))
    file = tmp_path / "limits.toml"
    head, _, rest = LIMITS.read_text().partition("[F16.f16_state]\n")
    at, of = "state_nmse = ", rest.index("state_nmse = ")
    file.write_text(head + "[F16.f16_state]\n" + rest[:of] + at + "0.5 #" + rest[of + len(at) :])
    with pytest.raises(LimitsError, match=r"\[F16.f16_state\] state_nmse = 0.5, but should be <= "):
        load_limits(file)


def test_its_runs_teach_nothing_about_float32():
    """What a float16 state costs must not loosen the caps of a float32 one."""
    run = SimpleNamespace(
        run=SimpleNamespace(checkpoint={"name": "tiny"}, id="r"),
        records=[a_record(case=HALF.id, metrics={"state_nmse": 0.5})],
    )
    assert lines([run], load_limits()[0]) == []


def test_the_same_numbers_where_float16_holds_them():
    """Beyond that they stay finite."""
    arrays = open_model(None).arrays
    plain, half = (kind(arrays, T=2, every_position=True).float() for kind in (Rwkv7, Rwkv7HalfState))
    inputs = [torch.tensor([[1, 2]]), *(torch.randn(one.shape) for one in list(plain.example_inputs().values())[1:])]
    for one, other in zip(plain(*inputs), half(*inputs), strict=True):
        assert torch.equal(one, other)
    large = half(inputs[0], *(1e6 * state for state in inputs[1:]))
    assert max(float(state.abs().max()) for state in large[1:]) == torch.finfo(torch.float16).max


@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("decode-F16-loop+f16_state", "the variant loop is not written with states in float16"),
        ("decode-BF16-chunk+f16_state", "needs arithmetic in float16, which BF16 has not: F16, W4F16, W8F16"),
        ("decode-F32-chunk+f16_state", "needs arithmetic in float16"),
    ],
)
def test_refused(toolchain, case, says):
    """What would silently be something else is refused in words."""
    with pytest.raises(RefusedError, match=says):
        job_of(parse_case(case), open_model(None), toolchain)


@pytest.mark.toolchain
def test_no_parts(toolchain):
    """Between parts every input is float32."""
    with pytest.raises(RefusedError, match="f16_state is of a whole graph"):
        part_jobs(parse_case("decode-F16-chunk+blocks+f16_state"), weights_of_model(open_model(None)), toolchain)


@pytest.mark.toolchain
def test_what_the_compiler_made(toolchain):
    """In the interpreter of its TPU dialect: 64 decode steps within the caps, and a state of float16 numbers.

    The graph that declares nothing gives one of float32 numbers there.
    """
    model = open_model(None)
    start = State.random(model.checkpoint.shape, seed=0, dtype=torch.float32).arrays()
    tokens = any_tokens(model.checkpoint.shape.n_vocab, 64)
    for case, kept in ((HALF, Dtype.F16), (PLAIN, Dtype.F32)):
        check = Check(limits=limits_for(load_limits()[0], case))
        want = oracle_for(model.checkpoint, case.quantization, case.options).run(tokens, start)
        with open_interpreters([job_of(case, model, toolchain)], Dialect.TPU, cache_folder()) as target:
            got = target.run(tokens, start)
        check.logits(want, got)
        check.state(want, got.state)
        assert narrowest(np.concatenate([array.ravel() for array in got.state[1::3]])) is kept


@pytest.mark.long
@pytest.mark.toolchain
def test_on_the_simulator(toolchain):
    """The net says float16 of every state, and passes the suite's check from a random state."""
    model = open_model(None)
    bmodel = compile_case(HALF, model, toolchain, cache_folder())
    start = State.random(model.checkpoint.shape, seed=0, dtype=torch.float32).arrays()
    check = Check(limits=limits_for(load_limits()[0], HALF))
    oracle = oracle_for(model.checkpoint, HALF.quantization, (Option.F16_STATE,))
    with open_place("cmodel", None, toolchain.libraries).open([bmodel.path]) as engine:
        assert {state.dtype for state in engine.nets[0].states} == {Dtype.F16}
        judge_from_random_state(check, engine, HALF, model, oracle, start)
