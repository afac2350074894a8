"""Instructions as the releases write them: times, bytes and names, and nothing that is not understood."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.profile import ProfileError, read_profile
from compile.timeline import (
    Direction,
    Engine,
    GroupBy,
    Instruction,
    Timeline,
    costs,
    covered,
    named,
    parse_timeline,
    plain_name,
    read_timeline,
)

TINY = Path(__file__).parent / "profiles" / "tiny"
"""What TPU-MLIR 1.28.1 and 1.30.2 both wrote, without trailing spaces, for y = softmax(x W + b)."""

HEAD = """\
--------------------------------------
s: start time, b: bd_id, g: gdma_id, e: end time, t: cmd cost time, dr: direction, sz: memsize, bw: bandwidth
--------------------------------------
ENGINE_BD                                                                              ENGINE_GDMA
"""
TAIL = """\
--------------------------------------
API_END total_cycle:{cycles}|b:1|g:1
TCYC : {cycles}
GDMA SUMMARY : |dr[0] S2L:1|dr[1] L2S:1|dr[2] S2S:1|dr[3] L2L:0
DDR BW USAGE : 32.36463783%
#######################################


flops: 1165332, runtime: 0.054732ms, ComputationAbility: 0.021292T
"""
NAMES = st.sampled_from(["MatMul", "A16MatMul", "Load", "Layer_Norm"])
STEP = st.tuples(st.integers(0, 5), st.integers(0, 9), NAMES, st.integers(1, 99), st.integers(0, 9999))


def engine_of(steps, engine, direction):
    """Instructions one after the other: each begins some cycles after the one before has ended."""
    now, found = 0, []
    for gap, cycles, operation, line, size in steps:
        moved = {} if engine is Engine.TIU else {"bytes": size, "direction": direction}
        command = "MM2" if engine is Engine.TIU else "GDMA_TENSOR"
        now += gap
        found.append(
            Instruction(
                engine=engine, start=now, cycles=cycles, operation=operation, line=line, command=command, **moved
            )
        )
        now += cycles
    return found


TIU = st.lists(STEP, max_size=8).map(lambda steps: engine_of(steps, Engine.TIU, None))
GDMA = st.builds(
    lambda steps, d: engine_of(steps, Engine.GDMA, d), st.lists(STEP, max_size=8), st.sampled_from(Direction)
)


def written(one):
    """An instruction as the compiler writes it."""
    text = f"{one.operation}_{one.line}|{one.command}|s:{one.start}|b:1|g:2|e:{one.end - 1}|t:{one.cycles}"
    return text if one.direction is None else f"{text}|dr:{one.direction.value}|sz:{one.bytes}|bw:12.89"


def a_profile(tiu, gdma, cycles):
    """A profile's text: the engines' instructions side by side, in rows that have one or both."""
    rows = max(len(tiu), len(gdma))
    left = [written(one) for one in tiu] + [""] * (rows - len(tiu))
    right = [written(one) for one in gdma] + [""] * (rows - len(gdma))
    body = "".join(f"{a:<87}{b:<87}\n" for a, b in zip(left, right, strict=True))
    return HEAD + body + TAIL.format(cycles=cycles)


@given(TIU, GDMA)
def test_instructions(tiu, gdma):
    """Every instruction is read as it was written, in the order of its start."""
    timeline = parse_timeline(a_profile(tiu, gdma, 1000), "p")
    assert timeline.total_cycles == 1000
    assert list(timeline.of(Engine.TIU)) == tiu
    assert list(timeline.of(Engine.GDMA)) == gdma
    assert [one.start for one in timeline.instructions] == sorted(one.start for one in [*tiu, *gdma])


@given(TIU, GDMA)
def test_subnets(tiu, gdma):
    """A second subnet begins where the first has ended."""
    text = a_profile(tiu, [], 500) + a_profile([], gdma, 300)
    timeline = parse_timeline(text, "p")
    assert timeline.total_cycles == 800
    assert list(timeline.of(Engine.GDMA)) == [replace(one, start=one.start + 500) for one in gdma]


@given(TIU, GDMA)
def test_overlap(tiu, gdma):
    """The cycles in which both engines work, counted one by one."""
    for mine, others in ((tiu, gdma), (gdma, tiu)):
        busy = {cycle for one in others for cycle in range(one.start, one.end)}
        assert covered(mine, others) == [len(busy & set(range(one.start, one.end))) for one in mine]


@given(TIU, GDMA)
def test_costs_add_up(tiu, gdma):
    """Whatever is grouped, nothing is lost, and what is alone is neither hidden nor idle."""
    timeline = Timeline(tuple(sorted([*tiu, *gdma], key=lambda one: one.start)), 1000)
    busy = timeline.busy
    assert busy.tiu + busy.gdma - busy.both + busy.neither == 1000
    for by in GroupBy:
        found = costs(timeline, by)
        assert sum(cost.instructions for cost in found) == len(timeline.instructions)
        assert sum(cost.tiu_cycles for cost in found) == busy.tiu
        assert sum(cost.gdma_cycles for cost in found) == busy.gdma
        assert sum(cost.alone_cycles for cost in found) == busy.tiu + busy.gdma - 2 * busy.both
        assert [cost.cycles for cost in found] == sorted((cost.cycles for cost in found), reverse=True)


def test_a_worked_example():
    """A load of 10 cycles beside a product of 4 and one of 6 that outlasts it: 7 of 13 cycles are shared."""
    text = a_profile(
        engine_of([(3, 4, "MatMul", 7, 0), (0, 6, "MatMul", 7, 0)], Engine.TIU, None),
        engine_of([(0, 10, "Load", 6, 500)], Engine.GDMA, Direction.COPY),
        13,
    )
    timeline = parse_timeline(text, "p")
    busy = timeline.busy
    assert (busy.tiu, busy.gdma, busy.both, busy.neither) == (10, 10, 7, 0)
    assert timeline.ddr_bytes == 1000  # a copy inside DDR is read and written there
    by_kind = {cost.operation: cost for cost in costs(timeline, GroupBy.KIND)}
    assert (by_kind["MatMul"].instructions, by_kind["MatMul"].alone_cycles) == (2, 3)
    assert (by_kind["Load"].alone_cycles, by_kind["Load"].bytes_per_ns) == (3, 50.0)
    assert {(cost.operation, cost.name) for cost in costs(timeline, GroupBy.COMMAND)} == {
        ("MM2", "TIU"),
        ("GDMA_TENSOR", "GDMA"),
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Load_25|GDMA_TENSOR|s:0|b:0", "p:5: 'Load_25.*should be an instruction like"),
        ("something new", "p:5: 'something' should be an instruction"),
        ("Cast_2|AR|s:37|b:1|g:1|e:99|t:8", r"p:5: .*should end at s \+ t - 1 = 44"),
        ("Load_2|GDMA_TENSOR|s:0|b:0|g:1|e:36|t:37|dr:7|sz:5|bw:1.0", "p:5: direction 7"),
        ("Cast_2|AR|s:0|b:1|g:1|e:8|t:9\nCast_2|AR|s:5|b:1|g:1|e:8|t:4", "p: TIU instructions overlap at cycle 5"),
    ],
)
def test_not_understood(row, message):
    """A line in another format is refused by its number: a new release must not be read wrongly."""
    with pytest.raises(ProfileError, match=message):
        parse_timeline(HEAD + row + "\n" + TAIL.format(cycles=9), "p")


@pytest.mark.parametrize("text", ["", HEAD, HEAD + "Cast_2|AR|s:0|b:1|g:1|e:8|t:9\n"])
def test_incomplete(text):
    """Without its last lines a profile is of a dynamic or an interrupted compile."""
    with pytest.raises(ProfileError, match="should end with a line API_END"):
        parse_timeline(text, "p")


def test_absent(tmp_path):
    """No file at all is said."""
    with pytest.raises(ProfileError, match="no such file"):
        read_timeline(tmp_path / "compiler_profile_0.txt")


def test_as_released():
    """A whole compile: the totals agree, and every operation has its name."""
    timeline = read_timeline(TINY / "compiler_profile_0.txt")
    totals = read_profile(TINY / "compiler_profile_0.txt")
    assert timeline.total_cycles == totals.predicted_cycles
    assert len(timeline.of(Engine.TIU)) == totals.tiu_instructions
    assert len(timeline.of(Engine.GDMA)) == totals.gdma_instructions
    moved = {d: sum(one.bytes for one in timeline.instructions if one.direction is d) for d in Direction}
    assert moved[Direction.READ] == totals.ddr_read_bytes
    assert moved[Direction.WRITE] == totals.ddr_write_bytes
    names = {(one.operation, one.name) for one in timeline.instructions}
    assert {("Load", "x"), ("Load", "w"), ("Load", "b"), ("MatMul", "z"), ("Store", "z"), ("Softmax", "y")} <= names
    assert all(one.name for one in timeline.instructions)
    weights = next(one for one in timeline.instructions if (one.operation, one.name) == ("Load", "w"))
    assert weights.bytes == 256 * 512 * 2


def test_the_mlir_of_another_compile():
    """A line that holds another operation names nothing: better no name than a wrong one."""
    text = (TINY / "compiler_profile_0.txt").read_text()
    mlir = "\n" + (TINY / "tiny_bm1684x_f16_final.mlir").read_text()
    timeline = named(parse_timeline(text, "p"), mlir)
    assert {one.name for one in timeline.instructions if one.operation in {"MatMul", "Cast", "Softmax"}} == {""}
    assert {one.name for one in named(timeline, "").instructions} == {""}


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("blocks.3.att.wkv_MatMul", "blocks.3.att.wkv"),
        ("/blocks.3/att/Mul_12_output_0_Mul", "blocks.3.att.Mul_12"),
        ("load_blocks.3.ffn.key.weight_f16", "blocks.3.ffn.key.weight"),
        ("load_/blocks.1/att/Reshape_7_output_0_Reshape", "blocks.1.att.Reshape_7"),
        ("blocks.1.att.x_r.mixed_Addblocks.1.att.r_MatMul_f16", "blocks.1.att.x_r.mixed"),
        ("blocks.1.att.state/blocks.1/att/recurrence/MatMul_output_0_MatMul_f16", "blocks.1.att.state"),
        ("blocks.0.att.recurrence.kept_1_Mul", "blocks.0.att.recurrence.kept_1"),
        ("blocks.0.att.recurrence.log_P_f16", "blocks.0.att.recurrence.log_P"),
        ("blocks.0.att.log_w_Mul", "blocks.0.att.log_w"),
        ("load_blocks.0.att.decay_lora.down_f16_1_0", "blocks.0.att.decay_lora.down"),
        ("ln_out.normed_LayerNormalizationlogits_MatMul_f16", "ln_out.normed"),
        ("logits_MatMul_f32", "logits"),
        ("", ""),
    ],
)
def test_names(location, name):
    """Locations as TPU-MLIR 1.30.2 wrote them, and what the graph calls them."""
    assert plain_name(location) == name


def test_layers():
    """The model's layer is part of the name; a group is the same operation in all of them."""
    (one,) = engine_of([(0, 1, "MatMul", 1, 0)], Engine.TIU, None)
    one = replace(one, name="blocks.11.att.wkv")
    assert (one.block, one.group) == (11, "blocks.*.att.wkv")
    one = replace(one, name="logits")
    assert (one.block, one.group) == (None, "logits")
