"""The map of somebody else's port: which inputs and outputs are tokens, logits and which state, as a TOML file.

What each key means stands in docs/bring-your-own.md.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from compile.spec import MOST_TOKENS, Quantization
from harness.cases import VARIANTS
from harness.own.layout import MATRIX, VECTOR, Layout, LayoutError, parse_layout
from tokenizer.codec import Codec  # noqa: TC001 - msgspec reads annotations at run time

if TYPE_CHECKING:
    from pathlib import Path
    from typing import NoReturn

LAYER = "{i}"
"""What stands for the number of the layer, from 0, in a tensor's name."""

_WORD = re.compile(r"\w+", re.ASCII)
_SECTION = re.compile(r"\s*\[+\s*([^\]]+?)\s*\]+")
_PATH = re.compile(r"`\$((?:\.\w+)*)")
_FIELD = re.compile(r"field `(\w+)`")


class MapError(ValueError):
    """A map that cannot be read, or that a file does not agree with: file, line, what was expected, what was found."""


class Order(Enum):
    """How tensors are found where names do not tell: by their places."""

    LAYERS = "layers"  # token or logits, then the states of layer 0, of layer 1, …
    KINDS = "kinds"  # token or logits, then the first state of each layer, the second of each, …


class Rows(Enum):
    """Of which positions a net gives logits."""

    LAST = "last"
    EVERY = "every"


class FloatType(Enum):
    """Types of states and logits."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"


class TokenType(Enum):
    """Types of tokens; I64 is known to ONNX alone, the compiler makes I32 of it."""

    I32 = "I32"
    I64 = "I64"


class NetEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A net: how many tokens a call takes, and of which of them it gives logits."""

    tokens: int
    logits: Rows = Rows.LAST


class TokenEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The input that takes tokens; types are only looked at where they are named."""

    input: str
    dtype: TokenType | None = None


class LayerNorm(Enum):
    """Who applies the layer norm behind the embedding, ``blocks.0.ln0``."""

    HOST = "host"  # rows come with it
    GRAPH = "graph"  # rows come as the checkpoint has them


class EmbeddingEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The input that takes rows of the embedding in place of tokens."""

    input: str
    dtype: FloatType | None = None
    layer_norm: LayerNorm = LayerNorm.HOST


class LogitsEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The output that gives logits."""

    output: str
    dtype: FloatType | None = None


class StateEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The inputs and outputs of one kind of state."""

    input: str
    output: str
    layout: str
    dtype: FloatType | None = None


class States(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The three kinds of state, in the order of the targets' arrays."""

    time_mix_shift: StateEntry
    wkv: StateEntry
    channel_mix_shift: StateEntry


KINDS = States.__struct_fields__


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    precision: Quantization
    nets: dict[str, NetEntry]
    logits: LogitsEntry
    states: States
    token: TokenEntry | None = None
    embedding: EmbeddingEntry | None = None
    checkpoint: str | None = None
    codec: Codec | None = None
    order: Order | None = None
    f32_operations: str | None = None


@dataclass(frozen=True, slots=True)
class IoMap:
    """A map that makes sense by itself.

    Attributes:
        path: the file.
        sha256: of the file.
        layouts: of the states, by kind, in the order in which the file has the kinds.
    """

    path: Path
    sha256: str
    text: str
    file: _File
    layouts: dict[str, Layout]

    @property
    def fed(self) -> tuple[str, TokenEntry | EmbeddingEntry]:
        """The section of what goes in for the tokens, and what it says."""
        file = self.file
        if file.token is not None:
            return "token", file.token
        assert file.embedding is not None  # noqa: S101 - load_map has refused a map with neither
        return "embedding", file.embedding

    def entry(self, kind: str) -> StateEntry:
        """What is said of a kind of state."""
        entry: StateEntry = getattr(self.file.states, kind)
        return entry

    @property
    def checkpoint(self) -> Path | None:
        """The reference checkpoint, which is named relative to the map."""
        return None if self.file.checkpoint is None else self.path.parent / self.file.checkpoint

    @property
    def f32_operations(self) -> tuple[str, ...]:
        """Operations that an ONNX file is compiled with in float32, of a file that is named relative to the map.

        Raises:
            MapError: it cannot be read, or asks for another type.
        """
        if self.file.f32_operations is None:
            return ()
        path = self.path.parent / self.file.f32_operations
        try:
            lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        except OSError as error:
            self.refuse(f"f32_operations: {path} cannot be read: {error.strerror}", "", "f32_operations")
        for words in lines:
            if len(words) != 2 or words[1] != "F32":
                self.refuse(
                    f"f32_operations: expected lines 'NAME F32' in {path}, found {' '.join(words)!r}",
                    "",
                    "f32_operations",
                )
        return tuple(words[0] for words in lines)

    def refuse(self, words: str, section: str = "", key: str = "") -> NoReturn:
        """Raise a MapError about a place in the file."""
        raise MapError(f"{self.path}:{_line(self.text, section, key)}: {words}")


def load_map(path: Path) -> IoMap:
    """Read a map and check what can be told without any other file.

    Raises:
        MapError: it cannot be read, or makes no sense.
    """
    try:
        data = path.read_bytes()
        text = data.decode()
        raw = tomllib.loads(text)
    except OSError as error:
        raise MapError(
            f"{path}: should be a map of inputs and outputs, but cannot be read: {error.strerror}"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MapError(f"{path}: should be TOML: {error}") from error
    file = _converted(path, text, raw)
    read = IoMap(path, hashlib.sha256(data).hexdigest(), text, file, {})
    _check_names(read, file)
    _check_fed(read, file)
    _check_nets(read, file)
    for kind in sorted(KINDS, key=list(raw["states"]).index):
        try:
            read.layouts[kind] = parse_layout(read.entry(kind).layout, MATRIX if kind == "wkv" else VECTOR)
        except LayoutError as error:
            read.refuse(f"layout: {error}", f"states.{kind}", "layout")
        _check_state(read, kind)
    _check_roles(read)
    return read


def _converted(path: Path, text: str, raw: dict[str, Any]) -> _File:
    try:
        return msgspec.convert(raw, _File)
    except msgspec.ValidationError as error:
        words = str(error)
        if "`$.nets[" in words:
            _refuse_net(path, text, raw["nets"])
        place = _PATH.search(words)
        *section, key = place[1].split(".")[1:] if place and place[1] else [""]
        if missing := _FIELD.search(words):
            section, key = [*section, *([key] if key else [])], missing[1]
        raise MapError(f"{path}:{_line(text, '.'.join(section), key)}: {words}") from error


def _refuse_net(path: Path, text: str, nets: dict[str, Any]) -> None:
    """Raise the error of the net that makes no sense; of a table with any names, msgspec does not say which."""
    for name, entry in nets.items():
        try:
            msgspec.convert(entry, NetEntry)
        except msgspec.ValidationError as error:
            words = str(error)
            found = _FIELD.search(words) or re.search(r"`\$\.(\w+)", words)
            key = found[1] if found else ""
            raise MapError(f"{path}:{_line(text, f'nets.{name}', key)}: nets.{name}: {words}") from error


def _check_names(read: IoMap, file: _File) -> None:
    if not _WORD.fullmatch(file.name):
        read.refuse(
            f"name: expected letters, digits and _, for it becomes part of ids, found {file.name!r}", "", "name"
        )
    if file.name in VARIANTS:
        read.refuse(
            f"name: expected another than our own variants {', '.join(VARIANTS)}, found {file.name!r}", "", "name"
        )


def _check_fed(read: IoMap, file: _File) -> None:
    if (file.token is None) == (file.embedding is None):
        found = "neither" if file.token is None else "both"
        read.refuse(
            "expected one of [token], where the embedding is in the nets, and [embedding], where the host looks rows "
            f"up, found {found}",
            "" if file.token is None else "embedding",
        )


def _check_nets(read: IoMap, file: _File) -> None:
    for name, net in file.nets.items():
        if not 1 <= net.tokens <= MOST_TOKENS:
            read.refuse(f"tokens: expected 1 to {MOST_TOKENS}, found {net.tokens}", f"nets.{name}", "tokens")
    if not any(net.tokens == 1 for net in file.nets.values()):
        read.refuse(
            "nets: expected one that takes 1 token, found none: whatever a prompt leaves over goes through it, as "
            "nothing is ever padded",
            "nets",
        )
    seen: dict[tuple[int, Rows], str] = {}
    for name, net in file.nets.items():
        key = net.tokens, net.logits if net.tokens > 1 else Rows.LAST
        if key in seen:
            read.refuse(f"nets: expected one for {net.tokens} tokens, found {seen[key]} and {name}", f"nets.{name}")
        seen[key] = name


def _check_state(read: IoMap, kind: str) -> None:
    entry, layout = read.entry(kind), read.layouts[kind]
    for end in ("input", "output"):
        name = getattr(entry, end)
        if (LAYER in name) == layout.stacked:
            have = "a name without it, for layout has an axis layer" if layout.stacked else f"{LAYER} in the name"
            read.refuse(f"{end}: expected {have}, found {name!r}", f"states.{kind}", end)


def _check_roles(read: IoMap) -> None:
    """No tensor has two roles, unless each has its own place on a shared axis."""
    file = read.file
    for end in ("input", "output"):
        section, fed = read.fed
        roles: dict[str, str] = {fed.input: section} if end == "input" else {file.logits.output: "logits"}
        for kind in read.layouts:
            name = getattr(read.entry(kind), end)
            other = roles.get(name)
            mine = read.layouts[kind].parts
            if other is not None and (other not in read.layouts or not _apart(read.layouts[other].parts, mine)):
                read.refuse(
                    f"{end}: expected a tensor of its own, found {name!r}, which is {other} already; states that share "
                    "a tensor have places on a shared axis in their layouts, such as 0/2 and 1/2",
                    f"states.{kind}",
                    end,
                )
            roles[name] = kind


def _apart(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) > 0 and one != other


def _line(text: str, section: str, key: str) -> int:
    """The line, from 1, of a key in a section, or else of the section's head; the first where neither is there."""
    head, now = 1, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if found := _SECTION.match(line):
            now = found[1].replace('"', "").replace("'", "").replace(" ", "")
            if section and (now == section or (now.startswith(section + ".") and head == 1)):
                head = number
        elif key and now == section and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return head
