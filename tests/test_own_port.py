"""Other people's bmodels: what their files say without a device, and engines that take their layout."""

import dataclasses
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.own.io_map import MapError, load_map
from harness.own.match import matched
from harness.own.options import Own
from harness.targets.bmodel import get_state, set_state, wkv_type
from reports.case_id import case_parts
from runtime.binding import Dtype
from runtime.bmodel import HEADER, MAGIC
from runtime.description import describe, launch_messages
from runtime.engine import Engine
from runtime.faults import BadBmodel
from runtime.session import Session
from tests.fake_libsophon.build import FakeModel, fake_board, write_bmodel
from tests.test_io_map import EXAMPLE, TINY, written


@pytest.mark.toolchain
def test_a_file_tells_of_its_nets(rwkv_bmodels):
    """Names, types and shapes of a bmodel, read without library and device."""
    (net,) = describe(rwkv_bmodels.prefill)
    assert (net["name"], net["stages"], net["is_dynamic"], net["addr_mode"]) == ("prefill_16", 1, False, 0)
    assert net["inputs"][0] == {"name": "token", "dtype": Dtype.I32, "shape": [1, 16], "bytes": 64}
    assert net["inputs"][2] == {"name": "blocks.0.att.state", "dtype": Dtype.F32, "shape": [2, 64, 64], "bytes": 32768}
    assert [len(net[ports]) for ports in ("inputs", "outputs")] == [7, 7]


@given(st.binary(max_size=200))
def test_any_description_is_read_or_refused(tmp_path_factory, data):
    """Whatever stands where the description should, nothing else than BadBmodel is raised."""
    path = tmp_path_factory.getbasetemp() / "any.bmodel"
    path.write_bytes(HEADER.pack(MAGIC, HEADER.size, len(data), 0) + data)
    with suppress(BadBmodel):
        describe(path)
    with suppress(BadBmodel):
        launch_messages(path)


def test_an_engine_takes_another_layout(tmp_path):
    """The same numbers as by our own contract; a state goes in and comes out as everywhere, under the graphs' names."""
    fake = FakeModel()
    model = dataclasses.replace(TINY, n_vocab=fake.vocabulary)
    ours = write_bmodel(tmp_path / "ours.bmodel", fake.whole())
    theirs = write_bmodel(
        tmp_path / "theirs.bmodel", fake.whole(name="rwkv_forward_one"), fake.whole(16, name="rwkv_forward_seq")
    )
    board = fake_board(tmp_path)
    contract = partial(matched, load_map(EXAMPLE), model=model)
    state = [np.arange(array, dtype=np.float32) for array in 2 * [128, 2 * 64 * 64, 128]]
    state = [array.reshape(2, 64, 64) if i % 3 == 1 else array for i, array in enumerate(state)]
    results = []
    for bmodel, options in ((ours, {}), (theirs, {"assemble": contract})):
        with Engine.open(board, [bmodel], **options) as engine, Session(engine) as session:
            set_state(engine, session, state)
            assert wkv_type(engine) is Dtype.F32
            results.append([*get_state(session), session.feed([1, 2, 3]), *get_state(session)])
    assert [net.name for net in engine.nets] == ["decode", "prefill_16"]
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_transposed_state_lies_transposed(tmp_path):
    """On the device the matrices are as the map says; to the harness they are as ours."""
    model = dataclasses.replace(TINY, n_vocab=FakeModel().vocabulary)
    io = load_map(written(tmp_path, 'layout = "head value key"', 'layout = "head key value"'))
    nets = [FakeModel().whole(T, name=f"rwkv_forward_{name}") for T, name in ((1, "one"), (16, "seq"))]
    bmodel = write_bmodel(tmp_path / "a.bmodel", *nets)
    state = [np.random.default_rng(i).normal(size=(2, 64, 64) if i % 3 == 1 else 128) for i in range(6)]
    state = [array.astype(np.float32) for array in state]
    contract = partial(matched, io, model=model)
    with Engine.open(fake_board(tmp_path), [bmodel], assemble=contract) as engine, Session(engine) as session:
        set_state(engine, session, state)
        np.testing.assert_array_equal(session.get_state()[1], state[1].transpose(0, 2, 1))
        np.testing.assert_array_equal(get_state(session)[1], state[1])


def test_one_option_without_the_other(tmp_path):
    """Each says which it needs."""
    with pytest.raises(MapError, match="--bmodel needs --io MAP"):
        Own(bmodels=(tmp_path / "a.bmodel",)).open(None, None)
    with pytest.raises(MapError, match="needs --bmodel FILE"):
        Own(io=EXAMPLE).open(None, None)


def test_a_file_that_is_no_bmodel(tmp_path):
    """It is told before a device is opened."""
    path = tmp_path / "a.bmodel"
    path.write_bytes(b"x" * 100)
    with pytest.raises(BadBmodel, match="is no bmodel"):
        Own(bmodels=(path,), io=EXAMPLE).open(None, None)


def test_ids_have_the_usual_form():
    """Reports, gate and known failures take an id apart as any other."""
    parts = case_parts("prefill_16-F16-bm1684x_port")
    assert (parts.graph, parts.chunk, parts.quantization, parts.variant) == ("prefill", 16, "F16", "bm1684x_port")
