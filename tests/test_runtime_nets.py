"""What makes a net an RWKV net, number formats of the device, and how a prompt is cut into calls."""

import copy
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from runtime.binding import Dtype
from runtime.faults import BadBmodel
from runtime.nets import EmbeddingRows, Net, State, check_agreement, from_floats, interpret, to_floats
from runtime.session import _plan

BYTES = {Dtype.F32: 4, Dtype.F16: 2, Dtype.BF16: 2, Dtype.I32: 4, Dtype.I8: 1}
FLOATS = [Dtype.F32, Dtype.F16, Dtype.BF16]
TORCH = {Dtype.F16: torch.float16, Dtype.BF16: torch.bfloat16}

every_float = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
narrow_floats = pytest.mark.parametrize("dtype", [Dtype.F16, Dtype.BF16], ids=lambda dtype: dtype.name)


def port(name, dtype, *shape):
    """Describe an input or output as the worker does."""
    return {"name": name, "dtype": dtype, "shape": list(shape), "bytes": int(np.prod(shape, dtype=int)) * BYTES[dtype]}


def described(tokens=(1, 1), logits=(1, 320), state_dtype=Dtype.F32):
    """Describe a net of one layer that keeps the contract."""
    states = [("shift", (1, 128)), ("wkv", (2, 64, 64)), ("ffn", (1, 128))]
    return {
        "name": "net",
        "is_dynamic": False,
        "stages": 1,
        "addr_mode": 0,
        "inputs": [port("token", Dtype.I32, *tokens), *(port(name, state_dtype, *shape) for name, shape in states)],
        "outputs": [
            port("logits_Add_f32", Dtype.F32, *logits),
            *(port(f"{name}_Add_f32", state_dtype, *shape) for name, shape in states),
        ],
    }


ROWS = port("embedding", Dtype.F16, 1, 16, 128)


def net(name="net", tokens=1, **changes):
    """Make a net of one tiny state."""
    values = {
        "name": name,
        "bmodel": f"{name}.bmodel",
        "tokens": tokens,
        "vocabulary": 320,
        "every_position": tokens == 1,
        "logits_dtype": Dtype.F32,
        "states": (State((2, 2), Dtype.F32),),
        "addr_mode": 0,
        "parts": (),
        "edges": (),
    }
    return Net(**{**values, **changes})


@pytest.mark.parametrize(
    ("tokens", "logits", "count", "every_position"),
    [
        ((1,), (320,), 1, True),
        ((1, 1), (1, 1, 320), 1, True),
        ((16,), (320,), 16, False),
        ((1, 16), (1, 320), 16, False),
        ((16,), (1, 1, 320), 16, False),
        ((16,), (16, 320), 16, True),
        ((1, 16), (1, 16, 320), 16, True),
    ],
)
def test_shapes_tell_the_kind_of_net(tokens, logits, count, every_position):
    """Tokens a call and the positions of the logits follow from the shapes; names mean nothing."""
    found = interpret(described(tokens, logits), "a.bmodel")
    assert (found.tokens, found.every_position, found.vocabulary) == (count, every_position, 320)
    assert found.states == (State((1, 128), Dtype.F32), State((2, 64, 64), Dtype.F32), State((1, 128), Dtype.F32))


@pytest.mark.parametrize(("logits", "every_position"), [((1, 16, 320), True), ((1, 1, 320), False)])
def test_rows_of_the_embedding_in_place_of_tokens(logits, every_position):
    """Floats of [1, T, C] at the first place are so; the vocabulary is the logits'."""
    described_so = described(logits=logits)
    described_so["inputs"][0] = ROWS
    found = interpret(described_so, "a.bmodel")
    assert (found.tokens, found.every_position, found.vocabulary) == (16, every_position, 320)
    assert found.rows == EmbeddingRows(128, Dtype.F16)
    assert dict(found.edges)["tokens"] == 16 * 128 * 2
    assert len(found.states) == 3
    assert interpret(described(), "a.bmodel").rows is None


@every_float
def test_states_may_be_of_every_float_type(dtype):
    """F32, F16 and BF16 states are taken as they are."""
    found = interpret(described(state_dtype=dtype), "a.bmodel")
    assert {state.dtype for state in found.states} == {dtype}


def broken(what, change):
    """Name one way of breaking the contract."""
    return pytest.param(change, id=what)


@pytest.mark.parametrize(
    "change",
    [
        broken("dynamic", lambda d: d.update(is_dynamic=True)),
        broken("two stages", lambda d: d.update(stages=2)),
        broken("an output too few", lambda d: d["outputs"].pop()),
        broken("an input too few", lambda d: d["inputs"].pop()),
        broken("no states", lambda d: d.update(inputs=d["inputs"][:1], outputs=d["outputs"][:1])),
        broken("float tokens", lambda d: d["inputs"].__setitem__(0, port("token", Dtype.F32, 1))),
        broken("a batch of tokens", lambda d: d["inputs"].__setitem__(0, port("token", Dtype.I32, 2, 8))),
        broken("a batch of rows", lambda d: d["inputs"].__setitem__(0, port("embedding", Dtype.F32, 2, 8, 128))),
        broken("rows without a batch", lambda d: d["inputs"].__setitem__(0, port("embedding", Dtype.F32, 8, 128))),
        broken("rows of nothing", lambda d: d["inputs"].__setitem__(0, port("embedding", Dtype.F32, 1, 8, 0))),
        broken("integer rows", lambda d: d["inputs"].__setitem__(0, port("embedding", Dtype.I8, 1, 8, 128))),
        broken("rows of another size", lambda d: d["inputs"].__setitem__(0, {**ROWS, "bytes": 100})),
        broken("no token", lambda d: d["inputs"].__setitem__(0, port("token", Dtype.I32, 0))),
        broken("integer logits", lambda d: d["outputs"].__setitem__(0, port("logits", Dtype.I8, 320))),
        broken("logits of another length", lambda d: d["outputs"].__setitem__(0, port("logits", Dtype.F32, 3, 320))),
        broken("no logits", lambda d: d["outputs"].__setitem__(0, port("logits", Dtype.F32))),
        broken("integer state", lambda d: d["inputs"].__setitem__(1, port("shift", Dtype.I8, 1, 128))),
        broken("state of an unknown type", lambda d: d["inputs"][1].update(dtype=99)),
        broken("state of two types", lambda d: d["outputs"].__setitem__(1, port("shift", Dtype.F16, 1, 128))),
        broken("states in another order", lambda d: d["outputs"].insert(1, d["outputs"].pop(2))),
        broken("memory of another size", lambda d: d["outputs"][1].update(bytes=4096)),
    ],
)
def test_a_broken_contract_is_refused(change):
    """Each rule of the contract is looked at, and the message names net and file."""
    description = copy.deepcopy(described())
    change(description)
    with pytest.raises(BadBmodel, match=r"^net net of a\.bmodel "):
        interpret(description, "a.bmodel")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (net("b", vocabulary=321), "vocabulary: 320 and 321"),
        (net("b", states=()), "number of states: 1 and 0"),
        (net("b", states=(State((4, 1), Dtype.F32),)), r"state 0: F32 \[2, 2\] and F32 \[4, 1\]"),
        (net("b", states=(State((2, 2), Dtype.F16),)), r"state 0: F32 \[2, 2\] and F16 \[2, 2\]"),
    ],
)
def test_nets_that_cannot_share_a_state_are_refused(other, words):
    """A state must pass from any net to any other."""
    check_agreement([net("a"), net("c", tokens=16)])
    with pytest.raises(BadBmodel, match=rf"a of a\.bmodel and b of b\.bmodel differ in {words}"):
        check_agreement([net("a"), other])


@narrow_floats
def test_every_narrow_number_survives(dtype):
    """All 65,536 patterns become the floats that torch reads in them, and come back; a NaN stays a NaN."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    values = to_floats(patterns.tobytes(), dtype)
    expected = torch.from_numpy(patterns.view(np.int16)).view(TORCH[dtype]).float().numpy()
    np.testing.assert_array_equal(values, expected)
    back = np.frombuffer(from_floats(values, dtype), np.uint16)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(back[numbers], patterns[numbers])
    assert np.isnan(to_floats(back[~numbers].tobytes(), dtype)).all()


@narrow_floats
@pytest.mark.parametrize("below", [0x0001, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], ids=hex)
def test_numbers_are_rounded_as_torch_does(dtype, below):
    """To nearest, ties to even; too large ones become infinite, and no NaN becomes a number."""
    values = ((np.arange(1 << 16, dtype=np.uint32) << 16) | below).view(np.float32)
    expected = torch.from_numpy(values).to(TORCH[dtype]).float().numpy()
    np.testing.assert_array_equal(to_floats(from_floats(values, dtype), dtype), expected)


@given(arrays.arrays(np.float32, 20, elements=st.floats(width=32)))
def test_single_precision_is_untouched(values):
    """F32 states pass bit for bit."""
    assert to_floats(from_floats(values, Dtype.F32), Dtype.F32).tobytes() == values.tobytes()


@given(st.integers(1, 400), st.sets(st.integers(2, 130), max_size=4))
def test_a_prompt_is_cut_without_padding(count, lengths):
    """Chunks add up to the prompt, fit their nets exactly, never grow, and a shorter net takes only what is left."""
    nets = [net("decode"), *(net(f"prefill_{length}", tokens=length) for length in lengths)]
    prompt = list(range(count))
    plan = _plan(prompt, nets)
    assert [token for _, chunk in plan for token in chunk] == prompt
    used = [net.tokens for net, _ in plan]
    assert used == [len(chunk) for _, chunk in plan]
    assert used == sorted(used, reverse=True)
    for length in lengths:
        assert sum(n for n in used if n < length) < length


@given(st.integers(1, 400), st.sets(st.integers(2, 130), max_size=4))
def test_without_a_decode_net_a_tail_is_refused(count, lengths):
    """Either the chunks come out even, or the message says how many tokens are left and which nets there are."""
    nets = [net(f"prefill_{length}", tokens=length) for length in lengths]
    left = count
    for length in sorted(lengths, reverse=True):
        left %= length
    if left == 0:
        assert sum(len(chunk) for _, chunk in _plan(range(count), nets)) == count
        return
    words = (
        f"{left} of {count} tokens are left over, and nothing is ever padded: the nets take {sorted(lengths)} tokens"
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        _plan(range(count), nets)


def test_of_two_nets_the_one_with_fewer_logits_is_taken():
    """Logits that nobody asked for are not fetched."""
    nets = [net("all", tokens=16, every_position=True), net("last", tokens=16), net("decode")]
    assert [n.name for n, _ in _plan(range(17), nets)] == ["last", "decode"]
