"""The options of a release's command line tools, and what became of them in another release.

They are read from what a tool says of itself with ``--help``, as text. What an option is where it is not given does not
stand there: that is read from the tool's own file, without running it.
"""

from __future__ import annotations

import ast
import re
import tempfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from compile.process import run, tail
from compile.toolchain import Toolchain, ToolchainError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOOLS = ("model_transform", "model_deploy")
"""Those that every compile goes through."""

_TIMEOUT_S = 120
_WIDTH = "200"  # of the terminal that a tool believes to write to: one release breaks lines as the other does

_ENTRY = re.compile(r" {1,4}(?P<head>\S.*?)(?: {2,}(?P<help>\S.*))?")
_NAME = re.compile(r"(?:^|, )(-{1,2}[A-Za-z][\w-]*)")
_NO_VALUES = {"store_true": "False", "store_false": "True"}  # what options without a value are where they are not given


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOption:
    """One option, or one argument without a name.

    Attributes:
        names: all of them, in the order of the help.
        value: what follows a name, such as ``{1,2,3}``; empty where nothing does.
        default: as the tool's file writes it; empty where that does not tell.
    """

    names: tuple[str, ...]
    value: str
    help: str
    default: str = ""


class What(Enum):
    """What became of an option."""

    ADDED = "added"
    REMOVED = "removed"
    DEFAULT = "default changed"
    VALUES = "values changed"
    HELP = "only described otherwise"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionChange:
    """One option that is not as it was; *old* and *new* are what *what* is about."""

    name: str
    what: What
    old: str
    new: str


def tool_options(toolchain: Toolchain, tool: str) -> dict[str, ToolOption]:
    """The options of a release's tool, by their first long names.

    Raises:
        ToolchainError: the release has no such tool, or it does not say anything of its options.
    """
    command = toolchain.command(tool)
    with tempfile.TemporaryDirectory(prefix="rwkv-tpu-help-") as name:
        folder, log = Path(name), Path(name) / "log"
        environment = toolchain.environment() | {"COLUMNS": _WIDTH}
        done = run([*command, "--help"], folder=folder, log=log, environment=environment, timeout_s=_TIMEOUT_S)
        said = tail(log, lines=100_000)
    found = parse_help(said, defaults_in(Path(command[-1]).read_text(errors="replace")))
    if done.status != 0 or not found:
        raise ToolchainError(
            f"tpu_mlir {toolchain.version}: {tool} --help should list its options, but it {done.ending}; "
            f"the last lines:\n{chr(10).join(said.splitlines()[-20:])}"
        )
    return found


def parse_help(text: str, defaults: Mapping[str, str] | None = None) -> dict[str, ToolOption]:
    """The options that a help text lists, by their first long names; *defaults* are by any name."""
    entries: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if found := _ENTRY.fullmatch(line):
            entries.append((found["head"], [found["help"]] if found["help"] else []))
        elif line.strip() and line.startswith(" ") and entries:
            entries[-1][1].append(line.strip())
    options = [_option(head, " ".join(words), defaults or {}) for head, words in entries]
    return {_key(one): one for one in options}


def defaults_in(source: str) -> dict[str, str]:
    """What options are where they are not given, by each of their names, as a tool's file declares them."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # of another Python, or no Python at all
        return {}
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            keywords = {one.arg: one.value for one in node.keywords}
            default = _NO_VALUES.get(_text(keywords.get("action")), "")
            default = ast.unparse(keywords["default"]) if "default" in keywords else default
            found |= {name: default for one in node.args if (name := _text(one))}
    return found


def changes(old: Mapping[str, ToolOption], new: Mapping[str, ToolOption]) -> tuple[OptionChange, ...]:
    """What is not the same, in the order of :class:`What` and then by name; an option can be told more than once."""
    return tuple(sorted(_changes(old, new), key=lambda one: (list(What).index(one.what), one.name)))


def _changes(old: Mapping[str, ToolOption], new: Mapping[str, ToolOption]) -> Iterator[OptionChange]:
    for name in new.keys() - old.keys():
        yield OptionChange(name=name, what=What.ADDED, old="", new=_in_words(new[name]))
    for name in old.keys() - new.keys():
        yield OptionChange(name=name, what=What.REMOVED, old=_in_words(old[name]), new="")
    for name in old.keys() & new.keys():
        before, after = old[name], new[name]
        values = [" ".join([*one.names, one.value]).strip() for one in (before, after)]
        if before.default != after.default:
            told = [one.default or "none" for one in (before, after)]
            yield OptionChange(name=name, what=What.DEFAULT, old=told[0], new=told[1])
        if values[0] != values[1]:
            yield OptionChange(name=name, what=What.VALUES, old=values[0], new=values[1])
        if before.help != after.help:
            yield OptionChange(name=name, what=What.HELP, old=before.help, new=after.help)


def _in_words(option: ToolOption) -> str:
    default = f" (default {option.default})" if option.default not in {"", "False"} else ""
    value = f"{option.value}: " if option.value else ""
    return f"{value}{option.help}{default}"


def _option(head: str, words: str, defaults: Mapping[str, str]) -> ToolOption:
    names = tuple(_NAME.findall(head))
    if not names:
        return ToolOption(names=(head,), value="", help=words, default=defaults.get(head, ""))
    value = head.rpartition(names[-1])[2].strip()
    default = next((defaults[name] for name in names if name in defaults), "")
    return ToolOption(names=names, value=value, help=words, default=default)


def _key(option: ToolOption) -> str:
    return next((name for name in option.names if name.startswith("--")), option.names[0])


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
