"""Grids: those that ship load, and a mistake in one is named."""

import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.half_state import COMPUTED_IN_F16
from compile.options import Option, OptionError
from compile.spec import GraphKind, GraphSpec, Quantization
from harness.cases import GRIDS, Case, GridError, Narrowed, load_grid, one_length
from harness.limits import load_limits
from harness.toml_lines import line_of


@pytest.mark.parametrize("name", sorted(path.stem for path in GRIDS.glob("*.toml")))
def test_shipped_grids(name):
    """Every grid that ships loads, has a decode graph, and names each case once."""
    grid = load_grid(name)
    assert any(case.graph.kind is GraphKind.DECODE for case in grid.cases)
    assert len({case.id for case in grid.cases}) == len(grid.cases)


def test_every_precision_is_judged():
    """One grid has them all, and each has caps; those with codes or float16 have some for float16 states, too."""
    grid, caps = load_grid("precisions"), load_limits()[0]
    assert {case.quantization for case in grid.cases} == set(Quantization) == set(caps)
    assert {quantization for quantization in caps if caps[quantization].f16_state is not None} == COMPUTED_IN_F16


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
    assert [case.id for case in load_grid(str(path), Narrowed(options="")).cases] == ["decode-F16-chunk"]
    asked = load_grid(str(path), Narrowed(options="quant_output, opt1")).cases
    assert [case.id for case in asked] == ["decode-F16-chunk+opt1+quant_output"]
    with pytest.raises(OptionError, match="no option 'opt9'"):
        load_grid(str(path), Narrowed(options="opt9"))


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
    ("text", "line", "message"),
    [
        ('quantizations = ["F17"]\nchunk_lengths = [16]', 1, r"Invalid enum value 'F17'.*one of F32, F16"),
        ('chunk_lengths = [16]\nquantizations = [\n  "F16",\n  # , "F32"\n  "F17",\n]', 5, "'F17'"),
        ('quantizations = ["F16"]\nchunk_length = [16]', 2, "unknown field `chunk_length`"),
        ('quantizations = ["F16"]', 1, "missing required field `chunk_lengths`"),
        ('quantizations = ["F16"]\nchunk_lengths = ["16"]', 2, "Expected `int`, got `str`"),
        ('quantizations = ["F16"]\nchunk_lengths = [1]', 2, "chunk_lengths: .*1 tokens a call; decode takes 1"),
        ('quantizations = ["F16"]\nchunk_lengths = [\n16,\n16]', 4, "chunk_lengths: 16 stands there twice"),
        ("# none\nquantizations = []\nchunk_lengths = [16]", 2, "quantizations is empty"),
        (
            'quantizations = ["F16"]\nchunk_lengths = [16]\nvariants = ["new"]',
            3,
            "no graph variant 'new'; there are chunk",
        ),
        ('quantizations = ["F16"]\nchunk_lengths = [16]\noptions = []', 3, "options is empty"),
        ('quantizations = ["F16"]\nchunk_lengths = [16]\noptions = [["opt1"],\n["opt1"]]', 4, "stands there twice"),
        ('quantizations = ["F16"]\nchunk_lengths = [16]\noptions = [\n[],\n["opt9"]]', 5, "no option 'opt9'"),
        ('quantizations = ["F16"]\nchunk_lengths = [16]\noptions = ["opt1"]', 3, "Expected `array`, got `str`"),
        (
            'quantizations = ["F16"]\nchunk_lengths = [16]\nalso = ["state/dirft"]',
            3,
            "no check 'state/dirft'; there are",
        ),
    ],
)
def test_mistakes(tmp_path, text, line, message):
    """A grid that makes no sense is refused with the file, the line, what was found and what should be."""
    path = tmp_path / "g.toml"
    path.write_text(text)
    with pytest.raises(GridError, match=message) as error:
        load_grid(str(path))
    assert str(error.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize("text", [b"quantizations = [", b'quantizations = ["F16"]\n\nchunk_lengths = 16]', b"\xff = 1"])
def test_what_is_no_toml(tmp_path, text):
    """The file is named, and where it can be, the line."""
    path = tmp_path / "g.toml"
    path.write_bytes(text)
    with pytest.raises(GridError, match=r"Invalid|line 3|can't decode") as error:
        load_grid(str(path))
    assert str(path) in str(error.value)


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=5), min_size=1, max_size=6),
    st.lists(st.sampled_from(["\n", " ", "# [ , ]\n"]), min_size=1, max_size=6),
)
def test_lines_of_elements(words, gaps):
    """Whatever stands between the elements of a list, each is found where it begins."""
    text, lines = "# k\nother = 1\nk = [", []
    for number, word in enumerate(words):
        text += gaps[number % len(gaps)]
        lines.append(text.count("\n") + 1)
        text += json.dumps(word, ensure_ascii=False) + ","
    text += "]\n"
    assert tomllib.loads(text)["k"] == words
    assert [line_of(text, "k", index) for index in range(len(words))] == lines
    assert line_of(text, "k") == 3


def test_narrowed(tmp_path):
    """Axes are narrowed to values that the grid has, in its order; others are refused."""
    path = tmp_path / "g.toml"
    path.write_text('quantizations = ["F16", "BF16"]\nchunk_lengths = [16, 64]\n')
    cases = load_grid(str(path), Narrowed(quantizations="BF16", chunk_lengths="64,16")).cases
    assert [case.id for case in cases][::2] == [
        "decode-BF16-chunk",
        "prefill_all_16-BF16-chunk",
        "prefill_all_64-BF16-chunk",
    ]
    assert len(load_grid(str(path), Narrowed(chunk_lengths="")).cases) == 2
    with pytest.raises(GridError, match=r"quantizations 'F32': .*g\.toml has F16, BF16; for others, write a grid"):
        load_grid(str(path), Narrowed(quantizations="F16,F32"))
    with pytest.raises(GridError, match="chunk_lengths '8'"):
        load_grid(str(path), Narrowed(chunk_lengths="8"))


def test_one_length():
    """The shortest or the longest of each kind, for each precision."""
    cases = load_grid("weights").cases
    for which, T in (("shortest", 16), ("longest", 96)):
        prefills = one_length([case for case in cases if case.graph.kind is GraphKind.PREFILL], which)
        assert [case.id for case in prefills] == [f"prefill_{T}-{q}-chunk" for q in ("F16", "W8F16", "W4F16")]


def test_no_such_grid():
    """An unknown name is answered with those that there are."""
    with pytest.raises(GridError, match=r"no grid 'nightlie'.*board, default, nightly, precisions, release"):
        load_grid("nightlie")


@pytest.mark.parametrize(("kind", "T"), [(GraphKind.DECODE, 2), (GraphKind.PREFILL, 1), (GraphKind.PREFILL, 0)])
def test_specs_that_make_no_sense(kind, T):
    """Decode takes one token, prefill several."""
    with pytest.raises(ValueError, match=f"{T} tokens"):
        GraphSpec(kind=kind, T=T)
