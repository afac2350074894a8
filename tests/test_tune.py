"""The search for the best options, with a compiler and a clock that are made up."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.compiler import Compiled
from compile.mixed import TABLES
from compile.options import WEIGHT_GROUPS, Option, conflict, in_order
from compile.profile import Profile
from harness.cases import parse_case
from harness.checkpoints import open_model
from harness.sizes import SIZES, size_of
from harness.training.recipe import SMALL
from harness.tune import PROMISING, Attempt, Parity, fits_simulator, judge_best, search
from harness.tuned import Tuned, TunedError, keep_tuned, read_tuned
from reports.schema import Stage

FINE = Parity(stage=None, message="", metrics={})
WRONG = Parity(stage=Stage.NUMERICS, message="wrong", metrics={})


def attempt(options, cycles, moved=0):
    """What a compile would give; None for one that fails."""
    if cycles is None:
        return Attempt(options=options, compiled=None, stage=Stage.CODEGEN, message="no")
    profile = Profile(
        predicted_cycles=cycles,
        tiu_instructions=1,
        gdma_instructions=1,
        ddr_read_bytes=moved,
        ddr_write_bytes=0,
        ddr_copy_bytes=0,
        flops=1,
    )
    compiled = Compiled(
        key="", bmodel_sha256="", bmodel_bytes=1, profile=profile, costs={}, toolchain="", f32_operations=()
    )
    return Attempt(options=options, compiled=compiled)


class FakeCompiler:
    """Says what *cycles* says of some options, and takes *seconds* of its own clock."""

    def __init__(self, cycles, seconds=lambda _: 1.0):
        self.cycles, self.seconds = cycles, seconds
        self.now = 100.0
        self.tried = []

    def __call__(self, options, left):
        """Try one."""
        self.tried.append((options, self.now, left))
        self.now += self.seconds(options)
        return attempt(options, self.cycles(options))

    def search(self, offered, budget_s):
        """Search with it."""
        return search(offered, self, budget_s=budget_s, clock=lambda: self.now)


OFFERED = st.lists(st.sampled_from(Option), unique=True, max_size=5)


@given(
    OFFERED,
    st.dictionaries(st.frozensets(st.sampled_from(Option)), st.none() | st.integers(1, 9), max_size=40),
    st.none() | st.integers(1, 9),
    st.dictionaries(st.integers(0, 20), st.floats(0, 50), max_size=10),
    st.floats(0, 200),
)
def test_any_compiler(offered, cycles, otherwise, seconds, budget_s):
    """Whatever compiles to what, and however long it takes, the search keeps its promises.

    No option at all is tried first, and what comes out is no worse. No combination is tried twice, contradicts itself,
    or holds what does not compile alone. No attempt but the first begins after the budget.
    """
    compiler = FakeCompiler(
        lambda options: cycles.get(frozenset(options), otherwise), lambda _: seconds.get(len(compiler.tried), 1.0)
    )
    attempts = compiler.search(offered, budget_s)
    tried = [options for options, _, _ in compiler.tried]
    assert tried[0] == ()
    assert len(set(map(frozenset, tried))) == len(tried) == len(attempts)
    assert all(options == in_order(options) and set(options) <= set(offered) for options in tried)
    start = next(one for one in attempts if one.options == ())
    assert attempts[0].rank <= start.rank
    assert [one.rank for one in attempts] == sorted(one.rank for one in attempts)
    for _, begun, left in compiler.tried[1:]:
        assert begun - 100.0 < budget_s
        assert left == pytest.approx(budget_s - (begun - 100.0))
    if start.compiled:
        broken = {one.options[0] for one in attempts if one.compiled is None and len(one.options) == 1}
        assert not [options for options in tried if len(options) > 1 and broken & set(options)]


@given(OFFERED)
def test_enough_time_tries_all(offered):
    """With time for it, every combination that makes sense is tried."""
    compiler = FakeCompiler(lambda options: 10 - len(options))
    tried = {frozenset(one.options) for one in compiler.search(offered, math.inf)}
    subsets = {frozenset(one for i, one in enumerate(offered) if n >> i & 1) for n in range(1 << len(offered))}
    assert tried == {subset for subset in subsets if not conflict(tuple(subset))}


def test_order():
    """Singles as offered; then the two that gained most, before what costs, before what changes nothing."""
    gains = {Option.OPT1: 2, Option.NO_TOPO_SORT: -3, Option.QUANT_INPUT: 0, Option.QUANT_OUTPUT: 5}
    compiler = FakeCompiler(lambda options: 100 - sum(gains[option] for option in options))
    attempts = compiler.search(tuple(gains), math.inf)
    names = ["+".join(option.value for option in options) for options, _, _ in compiler.tried]
    assert names[:5] == ["", "opt1", "no_topo_sort", "quant_input", "quant_output"]
    assert names[5:9] == [
        "opt1+quant_output",
        "no_topo_sort+opt1+quant_output",
        "no_topo_sort+quant_output",
        "no_topo_sort+opt1",
    ]
    assert all("quant_input" in name for name in names[9:])
    assert attempts[0].options == (Option.OPT1, Option.QUANT_OUTPUT)


def test_ties():
    """Of two as fast, the one that moves fewer bytes; then the one of fewer options."""
    ranks = [attempt((), 5, 9), attempt((Option.OPT1,), 5, 8), attempt((Option.IO_TAG,), 5, 9), attempt((), None)]
    in_turn = [one.options for one in sorted(ranks, key=lambda one: one.rank)]
    assert in_turn == [(Option.OPT1,), (), (Option.IO_TAG,), ()]


def test_what_fails_without_options_may_be_put_right():
    """Where nothing compiles but with one option, the others are tried in its company."""
    compiler = FakeCompiler(lambda options: 7 - len(options) if Option.NO_LAYER_GROUP in options else None)
    attempts = compiler.search((Option.QUANT_OUTPUT, Option.NO_LAYER_GROUP), math.inf)
    assert attempts[0].options == (Option.NO_LAYER_GROUP, Option.QUANT_OUTPUT)


def test_every_option_is_promising():
    """Without --options, every one is tried."""
    of_precision = WEIGHT_GROUPS.keys() | TABLES.keys() | {Option.F16_STATE}  # they make another precision
    take_other_inputs = {Option.HOST_EMBEDDING, Option.STACKED_STATE}
    assert set(PROMISING) == set(Option) - of_precision - take_other_inputs


def test_judged_until_one_passes():
    """What is wrong is passed over, what does not compile is not run, what is behind the first right one neither."""
    attempts = [attempt((one,), cycles) for one, cycles in zip(Option, (1, 2, 3, None), strict=False)]
    asked = []

    def judge(options):
        asked.append(options)
        return WRONG if len(asked) == 1 else FINE

    judged, best = judge_best(attempts, judge)
    assert [one.parity for one in judged] == [WRONG, FINE, None, None]
    assert best.options == attempts[1].options
    assert asked == [attempts[0].options, attempts[1].options]
    assert judge_best(attempts, lambda _: WRONG)[1] is None
    assert judge_best(attempts[3:], lambda _: FINE)[1] is None


def tuned(**changes):
    """An entry of the file."""
    fields = {"case": "decode-F16-chunk", "size": "0.1B", "toolchain": "1.30.2", "options": (Option.OPT1,)}
    return Tuned(**(fields | {"predicted_cycles": 7, "judged_on": 'a "name"'} | changes))


def test_the_file(tmp_path):
    """What is kept is read again; a newer finding takes the place of the older one, and of no other."""
    path = tmp_path / "tuned.toml"
    assert read_tuned(path) == ()
    for one in (tuned(), tuned(size="L2-C128-V257", options=()), tuned(predicted_cycles=6, options=())):
        keep_tuned(one, path)
    assert set(read_tuned(path)) == {tuned(predicted_cycles=6, options=()), tuned(size="L2-C128-V257", options=())}
    assert path.read_text().startswith("#")


@pytest.mark.parametrize("text", ["[[tuned]]\ncase = 1", '[[tuned]]\noptions = ["opt9"]', "tuned = ["])
def test_a_damaged_file(tmp_path, text):
    """A file that is not one is named, and nothing is written over it."""
    path = tmp_path / "tuned.toml"
    path.write_text(text)
    with pytest.raises(TunedError, match=r"tuned\.toml.*put it right"):
        keep_tuned(tuned(), path)
    assert path.read_text() == text


def test_what_ships():
    """Every entry of the file that ships is of a case that there is, with options that go together."""
    for one in read_tuned():
        assert replace(parse_case(one.case), options=in_order(one.options)).id.startswith(one.case)


def test_sizes():
    """A published shape goes by its name, another by its figures; a checkpoint of a name has that shape."""
    assert size_of(SMALL) == "L2-C128-V257"
    assert [size_of(shape) for shape in SIZES.values()] == list(SIZES)
    assert not fits_simulator(SimpleNamespace(arrays={"emb.weight": np.empty((65_536, 768), np.float16)}))
    assert fits_simulator(open_model(None))
