"""Payloads through memory that both processes see, and through the pipe where there is none."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import window
from runtime.engine import Engine
from runtime.framing import FramingError, encode, receive
from runtime.process import WORKER
from runtime.session import Session
from runtime.window import Window
from tests.fake_libsophon.build import FakeModel, fake_board, write_bmodel

MODEL = FakeModel(layers=3, C=768, vocabulary=65536)
PIPE = ["/usr/bin/env", "-u", window.VARIABLE, *WORKER]


@pytest.fixture(scope="module")
def libsophon(tmp_path_factory):
    """The fake libraries, as those of a board."""
    return fake_board(tmp_path_factory.mktemp("libsophon"))


@pytest.fixture(scope="module")
def bmodel(tmp_path_factory):
    """Nets for one token and for four."""
    return write_bmodel(
        tmp_path_factory.mktemp("bmodel") / "a.bmodel", MODEL.whole(), MODEL.whole(4, every_position=True)
    )


def two_sides():
    """One memory as two processes see it."""
    descriptor = window.create()
    try:
        return Window(descriptor), Window(descriptor)
    finally:
        os.close(descriptor)


def reader_of(data):
    """Read from bytes as from a pipe."""
    position = 0

    def read(count):
        nonlocal position
        position += count
        return data[position - count : position]

    return read


def use(libsophon, bmodel, command):
    """What a session gives that reads, writes and feeds; whether its worker sees the window."""
    with Engine.open(libsophon, [bmodel], command=command) as engine, Session(engine) as session:
        first = session.feed_all([1, 2, 3, 4, 5])
        state = session.get_state()
        logits = session.feed([6])
        session.set_state(state)
        again = session.feed([6])
        np.testing.assert_array_equal(again, logits)
        return engine._worker._sees_window, [first, logits, *state]


@given(st.lists(st.binary(max_size=3000), max_size=6))
def test_payloads_arrive_through_the_window(payloads):
    """The message itself holds none of them, unless they are few bytes."""
    here, there = two_sides()
    data = encode({"a": 1}, payloads, here)
    fields, got = receive(reader_of(data), there)
    assert (fields, [bytes(place) for place in got]) == ({"a": 1}, payloads)
    assert len(data) < 200 or sum(map(len, payloads)) < 4096


def test_a_reply_in_its_place_is_not_copied():
    """What was read straight into the window is sent as it lies there."""
    here, there = two_sides()
    places = here.places([3, 5000])
    places[0][:] = b"abc"
    places[1][:] = bytes(5000)
    data = encode({}, places, here)
    places[1][:3] = b"abc"  # a copy would not show it
    _, got = receive(reader_of(data), there)
    assert [bytes(place) for place in got] == [b"abc", b"abc" + bytes(4997)]


def test_payloads_that_do_not_fit_pass_the_pipe(monkeypatch):
    """However large a message is, it arrives."""
    monkeypatch.setattr(window, "SIZE_BYTES", 4096)
    here, there = two_sides()
    payloads = [b"x" * 4000, b"y" * 1000]
    fields, got = receive(reader_of(encode({}, payloads, here)), there)
    assert (fields, got) == ({}, payloads)


def test_a_window_that_is_not_there_is_noticed():
    """A header that speaks of a window is no message for one who has none, or a smaller one."""
    here, there = two_sides()
    data = encode({}, [b"x" * 5000], here)
    for window_of_receiver, message in ((None, data), (there, data.replace(b"[5000]", b"[9999999999]"))):
        length = (len(message) - 12).to_bytes(8, "little")
        with pytest.raises(FramingError, match="it says they lie in a window"):
            receive(reader_of(message[:4] + length + message[12:]), window_of_receiver)


def test_what_was_received_stays(libsophon, bmodel):
    """Logits and states are the caller's own, whatever comes after, and after the worker is gone."""
    with Engine.open(libsophon, [bmodel]) as engine, Session(engine) as session:
        first = session.feed([1])
        state = session.get_state()
        kept = [array.copy() for array in (first, *state)]
        session.feed_all([2, 3, 4, 5])
        session.set_state([array + 1 for array in state])
    for array, copy in zip((first, *state), kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_both_ways_give_the_same(libsophon, bmodel):
    """A worker that inherits the memory uses it, one that is reached otherwise does without; nobody chooses."""
    through_window, one = use(libsophon, bmodel, WORKER)
    through_pipe, other = use(libsophon, bmodel, PIPE)
    assert (through_window, through_pipe) == (True, False)
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("text", ["0:1:2", "99:1:2", "", "nonsense", "-1:0:0", "0", ":", "9" * 30])
def test_another_file_is_not_taken_for_the_window(libsophon, bmodel, text):
    """Variables may travel where open files do not: number and identity of the file must be right."""
    command = ["/usr/bin/env", f"{window.VARIABLE}={text}", *WORKER]
    assert use(libsophon, bmodel, command)[0] is False


def test_the_window_is_no_file_anyone_could_leave_behind(libsophon, bmodel):
    """Opening and closing changes neither /dev/shm nor this process's open files; nor does a kill."""

    def left():
        shared = Path("/dev/shm")  # noqa: S108 - looked at only
        return {path.name for path in shared.iterdir()}, len(list(Path("/proc/self/fd").iterdir()))

    before = left()
    for end in (Engine.close, lambda engine: engine._worker.kill()):
        engine = Engine.open(libsophon, [bmodel])
        Session(engine).feed([1])
        end(engine)
    assert left() == before
