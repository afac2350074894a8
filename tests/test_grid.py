"""Grids: those that ship load, and a mistake in one is named."""

import pytest

from compile.options import Option, OptionError
from compile.spec import GraphKind, GraphSpec, Quantization
from harness.cases import GRIDS, Case, GridError, load_grid


@pytest.mark.parametrize("name", sorted(path.stem for path in GRIDS.glob("*.toml")))
def test_shipped_grids(name):
    """Every grid that ships loads, has a decode graph, and names each case once."""
    grid = load_grid(name)
    assert any(case.graph.kind is GraphKind.DECODE for case in grid.cases)
    assert len({case.id for case in grid.cases}) == len(grid.cases)


def test_case_ids():
    """An id tells graph, precision and variant."""
    case = Case(graph=GraphSpec(kind=GraphKind.PREFILL_ALL, T=16), quantization=Quantization.F16)
    assert case.id == "prefill_all_16-F16-chunk"
    assert case.decode.id == "decode-F16-chunk"


def test_ids_with_options(tmp_path):
    """Options stand behind the variant, sorted; the decode graph that finishes a prompt has the same."""
    path = tmp_path / "g.toml"
    path.write_text('quantizations = ["F16"]\nchunk_lengths = [16]\noptions = [[], ["quant_output", "opt1"]]\n')
    ids = [case.id for case in load_grid(str(path)).cases]
    assert ids[:3] == ["decode-F16-chunk", "prefill_16-F16-chunk", "prefill_all_16-F16-chunk"]
    assert ids[3:] == [f"{graph}+opt1+quant_output" for graph in ids[:3]]
    assert load_grid(str(path)).cases[4].decode.id == ids[3]


def test_ids_of_cases_in_parts(tmp_path):
    """An id says that a case is compiled in parts before its options; its net is that of all blocks together."""
    path = tmp_path / "g.toml"
    path.write_text('quantizations = ["F16"]\nchunk_lengths = [16]\nblocks = [false, true]\noptions = [["opt1"]]\n')
    cases = load_grid(str(path)).cases
    graphs = ("decode", "prefill_16", "prefill_all_16")
    assert [case.id for case in cases[:3]] == [f"{graph}-F16-chunk+opt1" for graph in graphs]
    assert [case.id for case in cases[3:]] == [f"{graph}-F16-chunk+blocks+opt1" for graph in graphs]
    assert [case.net for case in cases] == [*graphs, "blocks_1", "blocks_16", "blocks_16"]
    assert cases[4].decode == cases[3]


def test_options_in_place_of_the_grids(tmp_path):
    """What is asked for takes the place of the grid's axis; an empty text asks for no option."""
    path = tmp_path / "g.toml"
    path.write_text('quantizations = ["F16"]\nchunk_lengths = []\noptions = [["opt1"], ["io_tag"]]\n')
    assert [case.id for case in load_grid(str(path), options="").cases] == ["decode-F16-chunk"]
    asked = load_grid(str(path), options="quant_output, opt1").cases
    assert [case.id for case in asked] == ["decode-F16-chunk+opt1+quant_output"]
    with pytest.raises(OptionError, match="no option 'opt9'"):
        load_grid(str(path), options="opt9")


def test_a_case_has_one_value():
    """Options in another order, or that contradict each other, make no case."""
    graph = GraphSpec(kind=GraphKind.DECODE)
    for options in ((Option.QUANT_OUTPUT, Option.OPT1), (Option.IO_ALONE, Option.IO_TAG)):
        with pytest.raises(OptionError):
            Case(graph=graph, quantization=Quantization.F16, options=options)


def test_axes_multiply(tmp_path):
    """Every precision meets every chunk length in every kind of graph."""
    path = tmp_path / "g.toml"
    path.write_text('quantizations = ["F16", "BF16"]\nchunk_lengths = [16, 64]\n')
    assert len(load_grid(str(path)).cases) == 2 * (1 + 2 * 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('quantizations = ["F17"]\nchunk_lengths = [16]', r"F17.*quantizations"),
        ('quantizations = ["F16"]\nchunk_length = [16]', "chunk_length"),
        ('quantizations = ["F16"]\nchunk_lengths = [1]', "chunk_lengths: .*1 tokens a call"),
        ('quantizations = ["F16"]\nchunk_lengths = [16, 16]', "a value twice"),
        ("quantizations = []\nchunk_lengths = [16]", "empty"),
        ('quantizations = ["F16"]\nchunk_lengths = [16]\nvariants = ["new"]', "no graph variant 'new'"),
        ('quantizations = ["F16"]\nchunk_lengths = [16]\noptions = []', "empty"),
        ('quantizations = ["F16"]\nchunk_lengths = [16]\noptions = [["opt1"], ["opt1"]]', "a value twice"),
        ('quantizations = ["F16"]\nchunk_lengths = [16]\noptions = [["opt9"]]', "no option 'opt9'"),
        ('quantizations = ["F16"]\nchunk_lengths = [16]\noptions = ["opt1"]', "options"),
        ("quantizations = [", "Invalid value"),
    ],
)
def test_mistakes(tmp_path, text, message):
    """A grid that makes no sense is refused with the file and what is wrong in it."""
    path = tmp_path / "g.toml"
    path.write_text(text)
    with pytest.raises(GridError, match=message) as error:
        load_grid(str(path))
    assert str(path) in str(error.value)


def test_no_such_grid():
    """An unknown name is answered with those that there are."""
    with pytest.raises(GridError, match=r"no grid 'nightlie'.*default, smoke"):
        load_grid("nightlie")


@pytest.mark.parametrize(("kind", "T"), [(GraphKind.DECODE, 2), (GraphKind.PREFILL, 1), (GraphKind.PREFILL, 0)])
def test_specs_that_make_no_sense(kind, T):
    """Decode takes one token, prefill several."""
    with pytest.raises(ValueError, match=f"{T} tokens"):
        GraphSpec(kind=kind, T=T)
