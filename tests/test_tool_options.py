"""Options of the compiler's tools, read from what the tools say, and what became of them."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.tool_options import What, changes, defaults_in, parse_help, tool_options
from compile.toolchain import ToolchainError
from tests.fake_toolchain import fake_toolchain

HELP = """2026/11/20 23:11:05 - INFO : TPU-MLIR v1.30.2-20260831
usage: model_deploy.py [-h] --mlir MLIR --chip
                       {bm1688,bm1684x}
                       [--opt {1,2,3}] [-V]

options:
  -h, --help            show this help message and exit
  --mlir MLIR           top mlir from model_transform.py
  --chip {bm1688,bm1684x}, --processor {bm1688,bm1684x}
                        chip platform name
  --opt {1,2,3}         Optimization level
  --same_addr SAME_ADDR
                        use same address for the specified inputs and
                        outputs, like 0:0,1:2 --not_an_option
  --quiet
"""
WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)
NAME = st.from_regex(r"[a-z][a-z0-9_]{1,24}", fullmatch=True).filter(lambda name: name != "help")


def test_a_help_text():
    """Names, values and words, whatever the lines are broken like; what stands in a description is no option."""
    found = parse_help(HELP, {"--processor": "'bm1684x'"})
    assert list(found) == ["--help", "--mlir", "--chip", "--opt", "--same_addr", "--quiet"]
    assert found["--chip"].names == ("--chip", "--processor")
    assert found["--chip"].value == "{bm1688,bm1684x}"
    assert found["--chip"].default == "'bm1684x'"
    assert found["--same_addr"].help.endswith("inputs and outputs, like 0:0,1:2 --not_an_option")
    assert found["--quiet"].help == ""


@given(
    st.dictionaries(
        NAME, st.tuples(st.lists(WORD, max_size=20), st.none() | st.lists(WORD, min_size=1, max_size=4)), max_size=12
    )
)
def test_any_parser(options):
    """Whatever a tool has, its help is read in full."""
    parser = argparse.ArgumentParser(prog="tool")
    for name, (words, choices) in options.items():
        parser.add_argument(f"--{name}", help=" ".join(words), choices=choices)
    found = parse_help(parser.format_help())
    assert found.keys() == {"--help"} | {f"--{name}" for name in options}
    for name, (words, choices) in options.items():
        assert found[f"--{name}"].help == " ".join(words)
        assert found[f"--{name}"].value == (name.upper() if choices is None else f"{{{','.join(choices)}}}")


def test_defaults():
    """As the file declares them: literally, by the kind of option, by each name; what is no Python tells none."""
    source = """
parser.add_argument("--opt", default=2, type=int)
parser.add_argument("--chip", "--processor", default="bm1684x")
parser.add_argument("--debug", action="store_true")
parser.add_argument("--disable_affine", action='store_false', help="x")
parser.add_argument(name, default=3)
"""
    assert defaults_in(source) == {
        "--opt": "2",
        "--chip": "'bm1684x'",
        "--processor": "'bm1684x'",
        "--debug": "False",
        "--disable_affine": "True",
    }
    assert defaults_in("not python {") == {}


def test_what_changed():
    """Each kind of change, in order; an option is told once for each."""
    old = parse_help(HELP, {"--opt": "2"})
    new = parse_help(
        HELP.replace("--quiet", "--silent").replace("{1,2,3}         Optim", "{1,2}         The optim"), {"--opt": "1"}
    )
    found = changes(old, new)
    assert [(one.name, one.what) for one in found] == [
        ("--silent", What.ADDED),
        ("--quiet", What.REMOVED),
        ("--opt", What.DEFAULT),
        ("--opt", What.VALUES),
        ("--opt", What.HELP),
    ]
    assert (found[2].old, found[2].new) == ("2", "1")
    assert (found[3].old, found[3].new) == ("--opt {1,2,3}", "--opt {1,2}")
    assert changes(old, old) == ()


def test_a_tool_is_asked(tmp_path):
    """The tool's own words, and its file's defaults."""
    toolchain = fake_toolchain(tmp_path, "1.0", 'parser.add_argument("--opt", type=int, default=2, help="level")')
    found = tool_options(toolchain, "model_deploy")
    assert found["--opt"].default == "2"
    assert found["--opt"].help == "level"


def test_a_tool_that_says_nothing(tmp_path):
    """A tool that breaks is told with its last words."""
    toolchain = fake_toolchain(tmp_path, "1.0", 'raise SystemExit("no libpython")')
    with pytest.raises(ToolchainError, match=r"model_deploy --help should list.*(?s:.*)no libpython"):
        tool_options(toolchain, "model_deploy")
