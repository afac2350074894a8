"""Maps of other people's ports: what they get wrong is told with file and line, before anything runs."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.own.io_map import MapError, load_map
from harness.own.layout import MATRIX, VECTOR, LayoutError, parse_layout
from harness.own.match import matched
from reference.shape import LoraRanks, ModelShape
from runtime.binding import Dtype
from runtime.piece import put_together, take_apart

EXAMPLE = Path(__file__).parent.parent / "examples" / "bring-your-own" / "bm1684x-port.toml"
TINY = ModelShape(
    n_layer=2, n_embd=128, head_size=64, n_ffn=512, n_vocab=257, ranks=LoraRanks(decay=8, rate=8, value=8, gate=8)
)


def port(name, shape, dtype=Dtype.F32):
    """An input or output as the worker describes it."""
    size = {Dtype.F32: 4, Dtype.I32: 4, Dtype.F16: 2}[dtype] * int(np.prod(shape))
    return {"name": name, "dtype": int(dtype), "shape": list(shape), "bytes": size}


def net(name, T, layers=2, **changes):
    """A net of the common port, as the worker describes it; *changes* replace tensors by name."""
    shapes = {0: (1, 1, 128), 1: (2, 64, 64), 2: (1, 1, 128)}
    numbers = [(i, k) for i in range(layers) for k in shapes]
    inputs = [port("idx", (1, T), Dtype.I32), *(port(f"input_state{k}_{i}", shapes[k]) for i, k in numbers)]
    outputs = [port("out_MatMul_f32", (1, 1, 257))]
    outputs += [port(f"output_state{k}_{i}_Add", shapes[k]) for i, k in numbers]
    for ports in (inputs, outputs):
        ports[:] = [changes.get(one["name"], one) for one in ports]
    described = {"name": name, "is_dynamic": False, "stages": 1, "addr_mode": 0}
    return described | {"inputs": inputs, "outputs": outputs}


def both(**changes):
    """Both nets of the port."""
    return [(net("rwkv_forward_one", 1, **changes), "a.bmodel"), (net("rwkv_forward_seq", 16), "a.bmodel")]


def written(folder, old="", new=""):
    """The example with a change that is really one."""
    text = EXAMPLE.read_text()
    assert old in text
    path = folder / "map.toml"
    path.write_text(text.replace(old, new, 1))
    return path


def line_with(path, words):
    """The first line of a file that holds *words*."""
    return next(n for n, line in enumerate(path.read_text().splitlines(), start=1) if words in line)


def test_the_example_fits_the_layout():
    """Names are ours, tokens and states are where the map says."""
    decode, prefill = matched(load_map(EXAMPLE), both(), TINY)
    assert (decode.name, decode.tokens, prefill.name, prefill.tokens) == ("decode", 1, "prefill_16", 16)
    assert decode.parts[0] == ("rwkv_forward_one", ("tokens", 0, 1, 2, 3, 4, 5), ("logits", 0, 1, 2, 3, 4, 5))
    assert [state.shape for state in decode.states] == 2 * [(128,), (2, 64, 64), (128,)]


def test_names_find_tensors_in_any_order(tmp_path):
    """Without order, names tell, be they in another order and with the compiler's additions."""
    io = load_map(written(tmp_path, 'order = "layers"', "#"))
    described = both()
    for ports in (described[0][0]["inputs"], described[0][0]["outputs"]):
        ports.reverse()
    decode, _ = matched(io, described, TINY)
    assert decode.parts[0].inputs == (5, 4, 3, 2, 1, 0, "tokens")
    assert decode.parts[0].outputs == (5, 4, 3, 2, 1, 0, "logits")


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('precision = "F16"', "", "name", "missing required field `precision`"),
        ('precision = "F16"', 'precision = "F17"', "precision", "Invalid enum value 'F17'"),
        ('name = "bm1684x_port"', 'name = "a-b"', "name", "letters, digits and _"),
        ('name = "bm1684x_port"', 'name = "chunk"', "name", "our own variants"),
        ("tokens = 1\n", "tokens = 2\n", "[nets.rwkv_forward_one]", "expected one that takes 1 token"),
        ("tokens = 16", "tokens = 0", "tokens = 0", "expected 1 to 4096, found 0"),
        ("tokens = 16", 'tokens = "16"', 'tokens = "16"', "Expected `int`, got `str`"),
        ('layout = "head value key"', 'layout = "head value"', 'layout = "head value"', "each of head value key once"),
        ('layout = "head value key"', 'layout = "head row key"', 'layout = "head row', "found 'row'"),
        ('"input_state0_{i}"', '"input_state0"', 'input = "input_state0"', "{i} in the name"),
        ('"input_state2_{i}"', '"input_state0_{i}"', None, "which is time_mix_shift already"),
        ('output = "out"', "", "[logits]", "missing required field `output`"),
        ('output = "out"', 'outptu = "out"', "outptu", "outptu"),
    ],
)
def test_a_map_that_makes_no_sense(tmp_path, old, new, line, words):
    """The error names the file and the line, what was expected and what was found."""
    path = written(tmp_path, old, new)
    with pytest.raises(MapError, match=re.escape(words)) as caught:
        load_map(path)
    told = re.match(rf"{re.escape(str(path))}:(\d+): ", str(caught.value))
    assert told, str(caught.value)
    if line is not None and not words.startswith("missing required field `precision`"):
        assert int(told[1]) == line_with(path, line)


def test_no_toml(tmp_path):
    """A file that is none, and one that is not there."""
    path = tmp_path / "map.toml"
    with pytest.raises(MapError, match="cannot be read: No such file"):
        load_map(path)
    path.write_text("name = \n")
    with pytest.raises(MapError, match=r"should be TOML: .*line 1"):
        load_map(path)


BY_NAME = ('order = "layers"', "#")


@pytest.mark.parametrize(
    ("change", "described", "section", "words"),
    [
        pytest.param(
            ("[nets.rwkv_forward_seq]", "[nets.rwkv_forward_many]"),
            both(),
            "[nets.rwkv_forward_many]",
            "expected a net rwkv_forward_many in a.bmodel, found rwkv_forward_one, rwkv_forward_seq",
            id="unknown net",
        ),
        pytest.param(
            ("tokens = 16", "tokens = 8"),
            both(),
            "tokens = 8",
            "expected [8], apart from axes of 1, found idx I32 [1, 16]",
            id="chunk",
        ),
        pytest.param(
            BY_NAME,
            both(input_state1_0=port("other", (2, 64, 64))),
            'input = "input_state1_{i}"',
            "expected one input 'input_state1_0' in net rwkv_forward_one of a.bmodel, found idx, input_state0_0, other",
            id="missing tensor",
        ),
        pytest.param(
            ("", ""),
            both(input_state1_1=port("input_state1_1", (2, 64, 32))),
            'layout = "head value key"',
            "expected [2, 64, 64], apart from axes of 1, for layout 'head value key' and the checkpoint's sizes, "
            "found input_state1_1 F32 [2, 64, 32]",
            id="wrong shape",
        ),
        pytest.param(
            ("", ""),
            both(layers=3),
            "[nets.rwkv_forward_one]",
            "has 10 inputs, but should have 7: one, and the states of the 2 layers of the checkpoint",
            id="layer count, by places",
        ),
        pytest.param(
            BY_NAME,
            both(layers=3),
            "[nets.rwkv_forward_one]",
            "has inputs without a role: input_state0_2, input_state1_2, input_state2_2",
            id="layer count, by names: tensors without a role",
        ),
        pytest.param(
            BY_NAME,
            both(layers=1),
            'input = "input_state0_{i}"',
            "expected one input 'input_state0_1'",
            id="too few layers",
        ),
        pytest.param(
            ("", ""),
            both(idx=port("idx", (1, 1))),
            'input = "idx"',
            "expected I32 tokens, found idx F32 [1, 1]",
            id="tokens of another type",
        ),
        pytest.param(
            ('logits = "last"', 'logits = "every"'),
            both(),
            'output = "out"',
            "expected logits of [16, 257]",
            id="rows of logits",
        ),
        pytest.param(
            ("", ""),
            both(out_MatMul_f32=port("out_MatMul_f32", (1, 1, 300))),
            'output = "out"',
            "expected logits of [257]",
            id="vocabulary",
        ),
        pytest.param(
            ("", ""),
            both(input_state0_0=port("input_state0_0", (1, 128), Dtype.F16)),
            'dtype = "F32"',
            "expected F32, found input_state0_0 F16 [1, 128]",
            id="type of a state",
        ),
        pytest.param(
            ("", ""),
            [(both()[0][0] | {"is_dynamic": True}, "a.bmodel"), both()[1]],
            "[nets.rwkv_forward_one]",
            "is dynamic",
            id="dynamic",
        ),
    ],
)
def test_a_map_that_the_file_does_not_agree_with(tmp_path, change, described, section, words):
    """The same: the line is the one to look at first."""
    path = written(tmp_path, *change)
    with pytest.raises(MapError, match=re.escape(words)) as caught:
        matched(load_map(path), described, TINY)
    told = re.match(rf"{re.escape(str(path))}:(\d+): ", str(caught.value))
    assert told
    line = path.read_text().splitlines()[int(told[1]) - 1]
    assert section in line


@given(st.permutations(("layer", *MATRIX)), st.booleans())
def test_any_layout_of_matrices_comes_back(axes, grouped):
    """Every order of axes, stacked, with two of them in one: what is put in comes out, at the place that it should."""
    text = " ".join(["1", "(" + axes[0], axes[1] + ")", *axes[2:]] if grouped else axes)
    layout = parse_layout(text, MATRIX)
    pieces = [layout.piece(TINY, state=0, layer=i) for i in range(2)]
    states = [np.random.default_rng(i).normal(size=(2, 64, 64)).astype(np.float32) for i in range(2)]
    (tensor,) = put_together(states, pieces, [layout.shape(TINY)])
    for state, back in zip(states, take_apart([tensor], pieces), strict=True):
        np.testing.assert_array_equal(state, back)
    place = {"layer": 1, "head": 0, "value": 3, "key": 5}
    lengths = {"layer": 2, "head": 2, "value": 64, "key": 64}
    plain = tensor.reshape([lengths[axis] for axis in axes])
    assert plain[tuple(place[axis] for axis in axes)] == states[1][0, 3, 5]


def test_shifts_may_share_a_tensor():
    """Both token shifts of all layers in one tensor, side by side."""
    layouts = [parse_layout(f"layer {n}/2 channel", VECTOR) for n in range(2)]
    pieces = [layout.piece(TINY, state=0, layer=i) for i in range(2) for layout in layouts]
    states = [np.full(128, n, np.float32) for n in range(4)]
    (tensor,) = put_together(states, pieces, [(2, 2, 128)])
    assert tensor[:, :, 0].tolist() == [[0, 1], [2, 3]]
    assert [back[7] for back in take_apart([tensor], pieces)] == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["", "channel channel", "(channel", "channel)", "((channel))", "2/2 channel", "key"])
def test_no_layout(text):
    """What cannot be read is refused."""
    with pytest.raises(LayoutError, match="expected"):
        parse_layout(text, VECTOR)
