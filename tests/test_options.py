"""Options of the compiler: their names, their flags, and which of them go together."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.mixed import TABLES, named, operations_of, tensors_of
from compile.options import (
    ADDRESS_MODES,
    Option,
    OptionError,
    conflict,
    in_order,
    option_flags,
    parse_options,
    weight_group,
    with_options,
)
from compile.spec import Quantization

SETS = st.sets(st.sampled_from(Option))


@pytest.mark.parametrize("option", Option)
def test_names(option):
    """A name has no character that means something in an id, on the command line or to pytest's -k."""
    assert option.value.replace("_", "").isalnum()
    assert parse_options([option.value]) == (option,)


@pytest.mark.parametrize(
    ("option", "flags"),
    [
        (Option.OPT1, ("--opt", "1")),
        (Option.NO_LAYER_GROUP, ("--disable_layer_group",)),
        (Option.NO_TOPO_SORT, ("--disable_topo_sort",)),
        (Option.QUANT_INPUT, ("--quant_input",)),
        (Option.QUANT_OUTPUT, ("--quant_output",)),
        (Option.HIGH_PRECISION, ("--high_precision",)),
        (Option.IO_ALONE, ("--addr_mode", "io_alone")),
        (Option.IN_REUSE, ("--addr_mode", "in_reuse")),
        (Option.TOPO_SORT, ()),
        (Option.FLOAT_OUTPUT, ()),
        (Option.GROUP128, ("--q_group_size", "128")),
        (Option.F32_HEAD, ()),
        (Option.F16_STATE, ("--quant_input",)),
        (Option.HOST_EMBEDDING, ()),
        (Option.STACKED_STATE, ()),
        (Option.SAME_ADDR, ("--same_addr", "1:1,2:2,3:3,4:4,5:5,6:6")),
    ],
)
def test_flags(option, flags):
    """Each option stands for what model_deploy calls it; the states of two layers are the inputs and outputs 1 to 6."""
    assert option_flags(option, 6) == flags


@pytest.mark.toolchain
def test_the_tool_knows_every_flag(toolchain):
    """The installed release's model_deploy has each flag, and each address mode among its choices."""
    tool = (toolchain.package / "python" / "tools" / "model_deploy.py").read_text()
    for option in Option:
        assert all(f'"{flag}"' in tool for flag in option_flags(option, 1)[:1])
    assert all(f"'{mode.value}'" in tool for mode in ADDRESS_MODES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["opt3"], "no option 'opt3' of the compiler; there are f16_state, f32_att, f32_ffn, f32_head, "),
        ([""], "no option ''"),
        (["opt1", "opt1"], r"opt1\+opt1: one of them stands there twice"),
        (["io_alone", "io_tag"], "addressed in one way only"),
        (["io_reloc", "same_addr"], "same_addr makes a state"),
        (["no_layer_group", "opt1"], "without layer groups there is nothing"),
        (["no_topo_sort", "no_layer_group"], "without layer groups there is nothing"),
        (["topo_sort", "no_layer_group"], "without layer groups there is nothing"),
        (["no_topo_sort", "topo_sort"], "topo_sort takes away what no_topo_sort adds"),
        (["group32", "group128"], "groups of one size"),
        (["float_output", "quant_output"], "float_output takes away what quant_output adds"),
    ],
)
def test_mistakes(names, message):
    """What does not exist or contradicts itself is refused in words."""
    with pytest.raises(OptionError, match=message):
        parse_options(names)


@given(SETS)
def test_conflicts_are_between_two(options):
    """Options go together where each two of them do, in whatever order they are named."""
    pairs = any(conflict(pair) for pair in combinations(options, 2))
    assert bool(conflict(tuple(options))) == pairs
    if not pairs:
        assert in_order(options) == in_order(reversed(in_order(options)))


@given(SETS.filter(lambda options: not conflict(tuple(options))), st.integers(1, 183))
def test_flags_add_up(options, n_states):
    """The flags that come first stay first, but for those taken away; each option's follow once, also added again."""
    flags = with_options(("--disable_topo_sort", "--quant_output"), in_order(options), n_states)
    kept = [("--disable_topo_sort", Option.TOPO_SORT), ("--quant_output", Option.FLOAT_OUTPUT)]
    first = tuple(flag for flag, taken_by in kept if taken_by not in options)
    assert flags[: len(first)] == first
    assert all((flag in flags) == (taken_by not in options) for flag, taken_by in kept)
    assert len(set(flags)) == len(flags)
    assert all(set(option_flags(option, n_states)) <= set(flags) for option in options)
    assert with_options(flags, in_order(options), n_states) == flags


def test_another_value_comes_last():
    """A value of the same flag that a graph gets anyway is followed by the option's, which model_deploy goes by."""
    assert with_options(("--opt", "2"), (Option.OPT1,), 1) == ("--opt", "2", "--opt", "1")


def test_opt2_is_the_way_back_from_opt1():
    """A flag with a value is taken away as a whole, and a value that looks the same elsewhere stays."""
    flags = ("--same_addr", "1", "--opt", "1", "--quant_output")
    assert with_options(flags, (Option.OPT2,), 1) == ("--same_addr", "1", "--quant_output")


def test_group_sizes():
    """A group is what the last flag says, 64 without one, and 1 where weights are not coded."""
    flags = with_options(("--quant_output",), (Option.GROUP32,), 1)
    assert weight_group(Quantization.W4F16, flags) == 32
    assert weight_group(Quantization.W8BF16, ()) == 64
    assert weight_group(Quantization.F16, flags) == 1


def test_mixed_tables():
    """A table names operations by patterns, and their weights; what names nothing is told."""
    operations = ["logits_MatMul", "/blocks.11/ffn/key/MatMul_output_0_MatMul", "/blocks.0/att/Mul_output_0_Mul"]
    patterns = operations_of((Option.F32_HEAD, Option.F32_FFN, Option.OPT1, Option.F32_ATT))
    found, missing = named(patterns, operations)
    assert found == operations[:2]
    assert missing == [TABLES[Option.F32_ATT].operations]
    whole = tensors_of((Option.F32_HEAD, Option.F32_FFN))
    assert whole.fullmatch("head.weight")
    assert whole.fullmatch("blocks.3.ffn.value.weight")
    assert not whole.fullmatch("blocks.3.att.value.weight")
    assert tensors_of((Option.OPT1,)) is None
