"""Saving, loading and comparing states."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from runtime import state_file
from runtime.binding import Dtype
from runtime.engine import Engine
from runtime.faults import BadStateFile
from runtime.nets import State, from_floats, to_floats
from runtime.session import Session
from runtime.states import compare
from tests.fake_libsophon.build import FakeModel, fake_board, write_bmodel

STATES = (State((1, 8), Dtype.F32), State((2, 3, 3), Dtype.F16), State((5,), Dtype.BF16))


def arrays_of(states=STATES, seed=1):
    """Numbers that the types can hold."""
    random = np.random.default_rng(seed)
    values = [random.normal(size=state.shape).astype(np.float32) for state in states]
    return [
        to_floats(from_floats(value, state.dtype), state.dtype).reshape(state.shape)
        for value, state in zip(values, states, strict=True)
    ]


@pytest.fixture
def saved(tmp_path):
    """A saved state."""
    path = tmp_path / "a.state"
    state_file.write(path, arrays_of(), STATES)
    return path


@pytest.mark.parametrize("dtype", [Dtype.F32, Dtype.F16, Dtype.BF16], ids=lambda dtype: dtype.name)
def test_a_session_goes_on_from_a_file(tmp_path_factory, tmp_path, dtype):
    """Another session, of another engine, continues bit for bit; in every type."""
    libsophon = fake_board(tmp_path_factory.mktemp("libsophon"))
    bmodel = write_bmodel(tmp_path / "a.bmodel", FakeModel(state_dtype=dtype).whole())
    path = tmp_path / "a.state"
    with Engine.open(libsophon, [bmodel]) as engine, Session(engine) as session:
        session.set_state(arrays_of(engine.nets[0].states))
        session.reset()
        session.feed([1, 2, 3])
        session.save(path)
        want = session.feed([4])
    with Engine.open(libsophon, [bmodel]) as engine, Session(engine) as session:
        session.load(path)
        with session.fork() as fork:
            assert session.compare(fork).exact
        np.testing.assert_array_equal(session.feed([4]), want)
        kept = session.get_state()
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(BadStateFile, match="damaged"):
            session.load(path)
        assert compare(kept, session.get_state()).exact


def test_a_state_comes_back(saved):
    """Number for number."""
    difference = compare(arrays_of(), state_file.read(saved, STATES))
    assert difference.exact
    assert difference.largest == difference.nmse == (0.0, 0.0, 0.0)


def test_other_programs_can_read_it(tmp_path):
    """The library safetensors finds the same tensors."""
    states = (State((1, 8), Dtype.F32), State((2, 3, 3), Dtype.F16))
    state_file.write(tmp_path / "a.state", arrays_of(states), states)
    found = load_file(tmp_path / "a.state")
    assert {name: array.dtype.name for name, array in found.items()} == {"state.0": "float32", "state.1": "float16"}
    for i, want in enumerate(arrays_of(states)):
        np.testing.assert_array_equal(found[f"state.{i}"], want)


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (STATES[:2], "expected 2 tensors, found 3"),
        ((*STATES, STATES[0]), "expected 4 tensors, found no state.3"),
        ((State((8, 1), Dtype.F32), *STATES[1:]), r"expected state\.0 to be .*\[8, 1\].* found .*\[1, 8\]"),
        ((STATES[0], State((2, 3, 3), Dtype.BF16), STATES[2]), r"expected state\.1 to be .*BF16.* found .*F16"),
    ],
)
def test_the_state_of_another_model_is_refused(saved, states, words):
    """By number, shape or type of its tensors."""
    with pytest.raises(BadStateFile, match=f"a.state is the state of another model: {words}"):
        state_file.read(saved, states)


@given(st.binary(max_size=300))
def test_other_files_are_refused(tmp_path_factory, content):
    """Any bytes, and nothing but BadStateFile is raised."""
    path = tmp_path_factory.mktemp("files") / "a.state"
    path.write_bytes(content)
    with pytest.raises(BadStateFile, match="is no saved state"):
        state_file.read(path, STATES)


@pytest.mark.parametrize("header", [b"[]", b"{}", b"null", b"3", b"[" * 100000, b'{"__metadata__": 3}', b"\xff\xfe"])
def test_other_headers_are_refused(tmp_path, header):
    """Well-formed or not."""
    path = tmp_path / "a.state"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(BadStateFile, match="is no saved state"):
        state_file.read(path, STATES)


@given(st.data())
def test_a_cut_or_lengthened_file_is_refused(tmp_path_factory, data):
    """Wherever it ends."""
    path = tmp_path_factory.mktemp("files") / "a.state"
    state_file.write(path, arrays_of(), STATES)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(BadStateFile):
        state_file.read(path, STATES)
    path.write_bytes(content + b"x")
    with pytest.raises(BadStateFile, match="is damaged: expected"):
        state_file.read(path, STATES)


def test_a_missing_file_is_told(tmp_path):
    """By the operating system's words."""
    with pytest.raises(BadStateFile, match=r"a\.state cannot be read: No such file"):
        state_file.read(tmp_path / "a.state", STATES)


def test_a_failed_save_leaves_the_old_file(saved):
    """And nothing besides."""
    content = saved.read_bytes()
    with pytest.raises(ValueError, match="longer"):
        state_file.write(saved, arrays_of()[:2], STATES)
    assert saved.read_bytes() == content
    assert list(saved.parent.iterdir()) == [saved]


def test_the_header_describes_the_file(saved):
    """Names, types, shapes and places, in JSON."""
    content = saved.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    assert header["__metadata__"] == {"content": "rwkv-state"}
    assert header["state.2"] == {"dtype": "BF16", "shape": [5], "data_offsets": [68, 78]}
    assert (8 + length) % 8 == 0


def test_differences_are_measured():
    """Largest difference and squared error over energy, tensor by tensor."""
    one = [np.array([3, 4], np.float32), np.array([0, 0], np.float32), np.array([1, 1], np.float32)]
    other = [np.array([3, 6], np.float32), np.array([0, 1], np.float32), np.array([1, 1], np.float32)]
    difference = compare(one, other)
    assert not difference.exact
    assert difference.largest == (2.0, 1.0, 0.0)
    assert difference.nmse == (4 / 25, float("inf"), 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_close(value):
    """Neither a NaN nor an infinity passes a limit; two of a kind are the same."""
    one, other = [np.array([1, 2], np.float32)], [np.array([1, value], np.float32)]
    for pair in ((one, other), (other, one)):
        difference = compare(*pair)
        assert not difference.exact
        assert not difference.nmse[0] <= 1e9
        assert not difference.largest[0] <= 1e9
    assert compare(other, other).exact


def test_both_zeros_are_told_apart():
    """Exact means the bits, though nothing lies between 0 and -0."""
    difference = compare([np.array([0.0], np.float32)], [np.array([-0.0], np.float32)])
    assert (difference.exact, difference.nmse, difference.largest) == (False, (0.0,), (0.0,))


def test_states_of_other_shapes_cannot_be_compared():
    """Not even where numpy would stretch one of them."""
    with pytest.raises(ValueError, match="expected states of shapes"):
        compare([np.zeros((1, 2), np.float32)], [np.zeros(2, np.float32)])
