"""A bmodel from a compiler much newer than the runtime: what days tell, and that nothing is told where they do not."""

import shutil
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.age import TOO_MANY_DAYS, compiler_day, remark, runtime_day
from runtime.bmodel import read_origin
from runtime.engine import Engine
from runtime.libraries import Libraries
from tests.fake_libsophon.build import FakeModel, fake_board, write_bmodel

COMPILER = "2.2+v1.30.2-20260831"
WHEEL = "libbmrt_version:1.0.0, branch:master,commit:ee6becb0 ,compiled on 20260812-11:14:52."
BOARD = "libbmrt_version:1.0.0, branch:master, commit:f82bc96e, compiled on Jun 28 2024 at 17:46:10, "


def test_days():
    """Of a compiler, and of a runtime in both of its forms."""
    assert compiler_day(COMPILER) == date(2026, 8, 31)
    assert runtime_day(WHEEL) == date(2026, 8, 12)
    assert runtime_day(BOARD) == date(2024, 6, 28)
    assert runtime_day("compiled on Jan  2 2025 at 00:00:00") == date(2025, 1, 2)


@pytest.mark.parametrize("text", ["", "2.2+v1.30.2", "2.2+v1.30.2-20261331", "-20260831x", "compiled on 20260230-0"])
def test_no_days(text):
    """Nothing is read into what is none."""
    assert compiler_day(text) is None
    assert runtime_day(text) is None


@given(st.text(), st.text())
def test_any_text(compiler, runtime):
    """No text raises, and without two days there is no remark."""
    for prefix, infix in (("", ""), ("2.2+v1-", "compiled on ")):
        assert remark(prefix + compiler, runtime) is None or compiler_day(prefix + compiler) is not None
        assert remark(COMPILER, infix + runtime) is None or runtime_day(infix + runtime) is not None


def test_what_is_much_newer():
    """The runtime of the same release is none too old, nor is a newer one; one of two years before is."""
    assert remark(COMPILER, WHEEL) is None
    assert remark("2.2+v1.9-20240831", WHEEL) is None
    words = remark(COMPILER, BOARD)
    assert "794 days newer" in words
    assert COMPILER in words
    assert "f82bc96e" in words
    assert "update libsophon" in words
    day = date(2026, 8, 12)
    for days, told in ((TOO_MANY_DAYS, False), (TOO_MANY_DAYS + 1, True)):
        compiler = f"2.2+v1-{day + timedelta(days):%Y%m%d}"
        assert (remark(compiler, WHEEL) is not None) is told


def test_an_engine_tells(tmp_path):
    """Each remark once, before anything is launched; bmodels that are not much newer have none."""
    board = fake_board(tmp_path)
    old = write_bmodel(tmp_path / "old.bmodel", FakeModel().whole())
    new = [write_bmodel(tmp_path / f"{T}.bmodel", FakeModel().whole(T), compiler="2.3+v2.0.0-20270101") for T in (2, 4)]
    with Engine.open(board, [old, *new]) as engine:
        (words,) = engine.remarks
    assert "compiler 2.3+v2.0.0-20270101 is 365 days newer than the runtime (libbmrt_version:0.0.0, fake" in words
    with Engine.open(board, [old]) as engine:
        assert engine.remarks == ()


@pytest.mark.toolchain
def test_a_real_bmodel(rwkv_bmodels, tmp_path):
    """One that says that it was made years later loads all the same, with the remark; as it comes it has none."""
    edited = tmp_path / "edited.bmodel"
    compiler = read_origin(rwkv_bmodels.decode).compiler
    later = compiler[:-8] + "20991231"
    content = rwkv_bmodels.decode.read_bytes()
    assert content.count(compiler.encode()) == 1
    edited.write_bytes(content.replace(compiler.encode(), later.encode()))
    libraries = Libraries.cmodel(rwkv_bmodels.libraries)
    with Engine.open(libraries, [edited]) as engine:
        assert f"compiler {later} is" in engine.remarks[0]
    shutil.copy(rwkv_bmodels.decode, edited)
    with Engine.open(libraries, [edited]) as engine:
        assert engine.remarks == ()
