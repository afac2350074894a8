"""The states of all layers in two tensors: the same numbers to the bit, and a launch that any depth fits into."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compile.compiler import RefusedError, compile_graph
from compile.dims import Dims
from compile.export import export
from compile.half_state import Rwkv7HalfState
from compile.stacked_state import MOST_LAYERS, STACKED_STATE, is_stacked, stacked_shapes
from harness.bundle.contract import contract_of
from harness.cases import VARIANTS, parse_case
from harness.check import Check
from harness.checkpoints import Model, open_model
from harness.device.place import open_place
from harness.jobs import job_of, part_jobs
from harness.limits import limits_for, load_limits
from harness.oracle import oracle_for
from harness.own.io_map import load_map
from harness.own.match import matched
from harness.parity import any_tokens
from harness.paths import cache_folder
from harness.sizes import BY_BLOCK
from harness.targets.bmodel import BmodelTarget
from harness.targets.ort import OnnxRuntime
from harness.weights import weights_of_model, weights_of_size
from reference.shape import LoraRanks, ModelShape
from reference.state import State
from reference.synthetic import synthetic
from runtime.binding import Dtype
from runtime.description import MESSAGE_LIMIT, describe, launch_message_bytes, launch_messages
from runtime.nets import interpret
from runtime.piece import put_together, take_apart
from tests.test_graphs import ARRAYS, CHECKPOINT
from tests.test_io_map import port
from tokenizer.codec import Codec

every_graph = pytest.mark.parametrize("graph", STACKED_STATE, ids=lambda graph: graph.__name__)
RANKS = LoraRanks(decay=8, rate=8, value=8, gate=8)


def of_layers(n_layer):
    """A model's shape, as narrow as it may be."""
    return ModelShape(n_layer=n_layer, n_embd=64, head_size=64, n_ffn=128, n_vocab=50, ranks=RANKS)


def described(dims, dtype=Dtype.F32):
    """A decode net with stacked states, as the worker describes it."""
    states = stacked_shapes(dims).items()
    return {
        "name": "decode",
        "is_dynamic": False,
        "stages": 1,
        "addr_mode": 0,
        "inputs": [port("token", (1, 1), Dtype.I32), *(port(name, shape, dtype) for name, shape in states)],
        "outputs": [port("logits", (1, 1, dims.V)), *(port(f"{name}.next", shape, dtype) for name, shape in states)],
    }


# ---- the graph


@every_graph
def test_the_same_numbers_to_the_bit(graph):
    """In ONNX Runtime, from a state that is not zero, whole chunks and a tail."""
    start = State.random(CHECKPOINT.shape, seed=0, dtype=torch.float32).arrays()
    tokens = any_tokens(CHECKPOINT.shape.n_vocab, 10)
    plain, stacked = (OnnxRuntime(ARRAYS, kind, (4,)).run(tokens, start) for kind in (graph, STACKED_STATE[graph]))
    assert stacked.logits.tobytes() == plain.logits.tobytes()
    assert [array.tobytes() for array in stacked.state] == [array.tobytes() for array in plain.state]


@every_graph
@pytest.mark.parametrize("T", [1, 4])
def test_what_it_takes_and_gives(graph, T, tmp_path):
    """What comes in for the tokens stays what it was; float32 states are taken apart and put together in float32."""
    plain, stacked = (kind(ARRAYS, T=T, every_position=False) for kind in (graph, STACKED_STATE[graph]))
    first, *states = stacked.example_inputs().items()
    assert first[0] == next(iter(plain.example_inputs()))
    dims = Dims.of(ARRAYS)
    assert [tuple(state.shape) for _, state in states] == [(2 * dims.L, 1, dims.C), (dims.L * dims.H, dims.N, dims.N)]
    assert stacked.output_names() == ["logits", "shift.next", "state.next"]
    ours = {"shift.next_Concat", "state.next_Concat"}
    more = set(export(stacked, tmp_path / "stacked.onnx")) - set(export(plain, tmp_path / "plain.onnx"))
    assert (ours <= more) == (not issubclass(graph, Rwkv7HalfState))


def test_every_graph_of_a_case_can_be_had_so():
    """Also those that a precision or another option chooses."""
    assert set(VARIANTS.values()) <= set(STACKED_STATE)
    assert all(is_stacked(stacked) and not is_stacked(plain) for plain, stacked in STACKED_STATE.items())
    assert all(issubclass(stacked, plain) for plain, stacked in STACKED_STATE.items())


# ---- which case has it


def weights_of(monkeypatch, n_layer):
    """Synthetic weights of so many layers."""
    monkeypatch.setitem(BY_BLOCK, "deep", of_layers(n_layer))
    return weights_of_size("deep")


@pytest.mark.toolchain
@pytest.mark.parametrize("options", ["", "+host_embedding", "+f16_state", "+f16_state+host_embedding"])
def test_asked_for(toolchain, monkeypatch, options):
    """It goes with whatever changes a graph, and the states to be kept in place are two."""
    weights = weights_of(monkeypatch, 3)
    plain = job_of(parse_case(f"decode-F16-chunk{options}"), weights, toolchain)
    names = "+".join(sorted(["stacked_state", "same_addr", *options.split("+")[1:]]))
    stacked = job_of(parse_case(f"decode-F16-chunk+{names}"), weights, toolchain)
    assert stacked.variant is STACKED_STATE[plain.variant]
    assert stacked.flags[stacked.flags.index("--same_addr") + 1] == "1:1,2:2"
    assert stacked.key != plain.key


@pytest.mark.toolchain
@pytest.mark.parametrize("case", ["decode-F16-chunk", "prefill_16-W8BF16-chunk", "decode-F16-loop"])
def test_deeper_models_have_it_anyway(toolchain, monkeypatch, case):
    """From the first depth on whose launch would not fit into the firmware's message."""
    fits, does_not = (
        job_of(parse_case(case), weights_of(monkeypatch, n), toolchain) for n in (MOST_LAYERS, MOST_LAYERS + 1)
    )
    assert not is_stacked(fits.variant)
    assert is_stacked(does_not.variant)
    messages = [launch_message_bytes(2 * (1 + 3 * n)) for n in (MOST_LAYERS, MOST_LAYERS + 1)]
    assert messages[0] < MESSAGE_LIMIT <= messages[1]
    assert launch_message_bytes(2 * (1 + 2)) < MESSAGE_LIMIT


@pytest.mark.toolchain
def test_no_parts(toolchain):
    """A part has the three states of its layer."""
    with pytest.raises(RefusedError, match="stacked_state is of a whole graph"):
        part_jobs(parse_case("decode-F16-chunk+blocks+stacked_state"), weights_of_model(open_model(None)), toolchain)


# ---- the runtime


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([2, 3, 64]))
def test_where_the_runtime_looks(L, H, N):
    """Where the graph takes each state from: rows 2 i and 2 i + 1, matrices i H to (i + 1) H."""
    dims = Dims(L=L, C=H * N, H=H, N=N, V=7)
    net = interpret(described(dims), "a.bmodel")
    rng = np.random.default_rng(0)
    states = [rng.normal(size=shape).astype(np.float32) for _, shape in dims.state_shapes()]
    shifts, matrices = put_together(states, net.pieces, [state.shape for state in net.states])
    for i in range(L):
        np.testing.assert_array_equal(shifts[2 * i], states[3 * i][0])
        np.testing.assert_array_equal(matrices[i * H : (i + 1) * H], states[3 * i + 1])
        np.testing.assert_array_equal(shifts[2 * i + 1], states[3 * i + 2][0])
    for one, other in zip(take_apart([shifts, matrices], net.pieces), states, strict=True):
        np.testing.assert_array_equal(one, other.reshape(one.shape))


@pytest.mark.parametrize(
    "shapes",
    [
        [(4, 1, 128), (5, 64, 64)],
        [(4, 1, 128), (4, 64, 32)],
        [(3, 1, 128), (3, 64, 64)],
        [(4, 2, 128), (4, 64, 64)],
        [(4, 1, 100), (4, 64, 64)],
        [(4, 1, 128), (4, 0, 0)],
        [(4, 64, 64), (4, 1, 128)],
        [(4, 1, 128)],
        [(4, 1, 128), (4, 64, 64), (4, 1, 128)],
    ],
)
def test_what_is_no_stack(shapes):
    """Other states stay tensors by themselves."""
    states = [port(f"s{i}", shape) for i, shape in enumerate(shapes)]
    net = described(Dims(L=2, C=128, H=2, N=64, V=7))
    net |= {"inputs": [net["inputs"][0], *states], "outputs": [net["outputs"][0], *states]}
    assert interpret(net, "a.bmodel").pieces == ()


def test_a_bundle_tells_where_they_lie(tmp_path):
    """Its map, read as anybody's, leads to the same places."""
    model = open_model(None)
    dims = Dims.of(model.arrays)
    net = described(dims)
    (tmp_path / "io.toml").write_text(
        contract_of(parse_case("decode-F16-chunk+stacked_state"), model, [(net, "decode.bmodel")])
    )
    (read,) = matched(load_map(tmp_path / "io.toml"), [(net, "decode.bmodel")], model.checkpoint.shape)
    ours = interpret(net, "decode.bmodel")
    rng = np.random.default_rng(0)
    states = [rng.normal(size=shape).astype(np.float32) for _, shape in dims.state_shapes()]
    for one, other in zip(
        take_apart(put_together(states, ours.pieces, [state.shape for state in ours.states]), read.pieces),
        states,
        strict=True,
    ):
        np.testing.assert_array_equal(one.ravel(), other.ravel())


# ---- the compiler and the simulator


def computed(toolchain, case, model):
    """The case's bmodel on the simulator: two calls from a state that is not zero."""
    bmodel = compile_graph(job_of(case, model, toolchain), cache_folder())
    start = State.random(model.checkpoint.shape, seed=0, dtype=torch.float32).arrays()
    tokens = any_tokens(model.checkpoint.shape.n_vocab, 2 * case.graph.T)
    with open_place("cmodel", None, toolchain.libraries).open([bmodel.path]) as engine:
        return bmodel, tokens, start, BmodelTarget(engine, case.net).run(tokens, start)


@pytest.mark.toolchain
@pytest.mark.parametrize(
    "case",
    [
        "decode-F16-chunk",
        pytest.param("prefill_all_16-F16-chunk", marks=pytest.mark.long),
        pytest.param("prefill_all_80-W4F16-chunk", marks=pytest.mark.long),
        pytest.param("decode-F16-chunk+f16_state", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("more", ["stacked_state", pytest.param("same_addr+stacked_state", marks=pytest.mark.long)])
def test_the_same_bits_on_the_simulator(toolchain, case, more):
    """Of the model that ships; in place too, where no next state may overwrite what is still to be read."""
    model = open_model(None)
    both = parse_case(case), parse_case(f"{case}+{more}")
    (_, _, _, want), (bmodel, _, _, got) = (computed(toolchain, one, model) for one in both)
    assert [len(net["inputs"]) for net in describe(bmodel.path)] == [3]
    assert got.logits.tobytes() == want.logits.tobytes()
    for one, other in zip(want.state, got.state, strict=True):
        assert np.isfinite(one).all()
        assert one.tobytes() == other.tobytes()


@pytest.mark.long
@pytest.mark.toolchain
@pytest.mark.parametrize("graph", ["decode", "prefill_all_16"])
def test_sixty_layers(toolchain, graph):
    """As a whole graph, on the simulator: the reference's numbers, by a launch that fits into its message."""
    model = Model(synthetic(of_layers(60)), Codec.WORLD_BYTES)
    case = parse_case(f"{graph}-F32-chunk")
    bmodel, tokens, start, got = computed(toolchain, case, model)
    assert launch_messages(bmodel.path)[case.net] == launch_message_bytes(6) < MESSAGE_LIMIT
    want = oracle_for(model.checkpoint, case.quantization).run(tokens, start)
    check = Check(limits=limits_for(load_limits()[0], case))
    check.logits(want, got)
    check.state(want, got.state)
