"""The RWKV World tokenizer: at each place the longest entry of the vocabulary that matches the bytes.

The vocabulary is a file inside the PyPI package ``rwkv``, one entry a line: ``<id> <Python literal> <bytes>``,
the literal a ``str`` or, where the entry is no valid UTF-8, a ``bytes``. Ids 1 to 256 are the single bytes, so
everything can be encoded. Id 0 has no line: it is the end of text.
"""

import ast
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self, TypeAlias

VOCABULARY_FILE = "rwkv_vocab_v20230424.txt"
LAST_ID = 65_529
END_OF_TEXT = 0

# What to do about bytes that are no valid UTF-8: show U+FFFD, or raise UnicodeDecodeError.
Errors = Literal["replace", "strict"]

# A prefix of an entry: the id of the longest entry that it begins with, and by the next byte the prefixes one longer.
_Node: TypeAlias = tuple[int, dict[int, "_Node"]]


class TokenizerError(ValueError):
    """A vocabulary that cannot be used, or an id that stands for nothing."""


class WorldTokenizer:
    """Text to World ids and back, lossless for any bytes.

    Id 0 marks the end of a text and stands for no bytes: encoding never makes it, decoding passes over it.
    """

    def __init__(self, vocabulary: Mapping[int, bytes]) -> None:
        """Use *vocabulary*, id to bytes, as `read_vocabulary` returns it.

        Raises TokenizerError where ids 1 to 256 are not the single bytes.
        """
        for byte in range(256):
            if vocabulary.get(byte + 1) != bytes([byte]):
                raise TokenizerError(
                    f"id {byte + 1} of the vocabulary should be {bytes([byte])!r}, but is "
                    f"{vocabulary.get(byte + 1)!r}: ids 1 to 256 must be the single bytes"
                )
        self.vocabulary = MappingProxyType({END_OF_TEXT: b"", **vocabulary})
        """Id to bytes, id 0 included."""
        self._n_bytes = {token: len(entry) for token, entry in vocabulary.items()}
        self._max_bytes = max(self._n_bytes.values())
        self._first_bytes = _prefix_tree(vocabulary)

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Read the vocabulary from *path*, by default from the installed package ``rwkv``. Takes most of a second.

        Raises TokenizerError where there is no such package or the file is not the World vocabulary, and OSError
        where *path* cannot be read.
        """
        return cls(read_vocabulary(path or find_vocabulary()))

    def encode(self, text: str) -> list[int]:
        """Return the ids of *text* as UTF-8. Raises UnicodeEncodeError on a lone surrogate, which has no UTF-8."""
        return self.encode_bytes(text.encode())

    def encode_bytes(self, data: bytes) -> list[int]:
        """Return the ids of *data*, which need not be valid UTF-8."""
        first_bytes, n_bytes, max_bytes = self._first_bytes, self._n_bytes, self._max_bytes
        ids = []
        at = 0
        while at < len(data):
            longest, children = END_OF_TEXT, first_bytes
            for byte in data[at : at + max_bytes]:
                node = children.get(byte)
                if node is None:
                    break
                longest, children = node
            ids.append(longest)
            at += n_bytes[longest]
        return ids

    def decode(self, ids: Iterable[int], errors: Errors = "replace") -> str:
        """Return the text of *ids*.

        A character may be spread over several ids: where *ids* begin or end inside one, or are no UTF-8 at all,
        "replace" shows U+FFFD and "strict" raises UnicodeDecodeError. Raises TokenizerError as `decode_bytes` does.
        """
        return self.decode_bytes(ids).decode(errors=errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of *ids*; id 0 adds none.

        Raises TokenizerError, with id and position, where an id is not in the vocabulary: 65,530 to 65,535 are
        rows of a World checkpoint's head but no entries.
        """
        return join_entries(self.vocabulary, ids)

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text, unpadded. Raises as `encode` does."""
        return [self.encode(text) for text in texts]

    def decode_batch(self, batch: Iterable[Iterable[int]], errors: Errors = "replace") -> list[str]:
        """Return the text of each list of ids. Raises as `decode` does."""
        return [self.decode(ids, errors) for ids in batch]

    def __reduce__(self) -> tuple[type[Self], tuple[dict[int, bytes]]]:
        """Copy and pickle by the vocabulary alone: the tree is larger, and deeper than pickle likes."""
        return type(self), ({token: entry for token, entry in self.vocabulary.items() if token != END_OF_TEXT},)


def join_entries(vocabulary: Mapping[int, bytes], ids: Iterable[int]) -> bytes:
    """Return the bytes of *ids*, one after the other. Raises TokenizerError where one is not in *vocabulary*."""
    ids = list(ids)
    try:
        return b"".join([vocabulary[i] for i in ids])
    except KeyError:
        position = next(position for position, i in enumerate(ids) if i not in vocabulary)
        raise TokenizerError(
            f"expected ids from {min(vocabulary)} to {max(vocabulary)}, but id {ids[position]} stands at position "
            f"{position} of {len(ids)}: check that these ids and this vocabulary belong to the same checkpoint"
        ) from None


def find_vocabulary() -> Path:
    """Return where the package ``rwkv`` keeps the World vocabulary. Raises TokenizerError where it does not."""
    # Importing rwkv.model reads the environment and may compile code; to look a top-level package up imports nothing.
    spec = importlib.util.find_spec("rwkv")
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        path = Path(folder) / VOCABULARY_FILE
        if path.is_file():
            return path
    found = f"found no such file in {', '.join(folders)}" if folders else "that package is not installed"
    raise TokenizerError(
        f"expected {VOCABULARY_FILE} in the package rwkv, but {found}: install rwkv, or name a file by its path"
    )


def read_vocabulary(path: Path) -> dict[int, bytes]:
    """Return the World vocabulary in *path*: ids 1 to 65,529, each to its bytes.

    Raises TokenizerError, with the line, where a line cannot be read, its length field is wrong, or an id or an
    entry comes twice; and where ids are missing at the end of the file.
    """
    vocabulary: dict[int, bytes] = {}
    seen: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, entry = _parse_line(line)
        except (ValueError, SyntaxError) as error:
            raise _unusable(path, number, str(error)) from error
        if token in vocabulary:
            raise _unusable(path, number, f"id {token} comes a second time")
        if entry in seen:
            raise _unusable(path, number, f"{entry!r} comes a second time, first as id {seen[entry]}")
        vocabulary[token] = entry
        seen[entry] = token
    if len(vocabulary) != LAST_ID:
        raise _unusable(path, len(vocabulary), f"the file ends here, expected {LAST_ID} entries")
    return vocabulary


def write_vocabulary(path: Path, vocabulary: Mapping[int, bytes]) -> None:
    """Write *vocabulary* in the form that `read_vocabulary` reads; id 0 has no line."""
    lines = []
    for token, entry in sorted(vocabulary.items()):
        if token == END_OF_TEXT:
            continue
        try:
            literal = repr(entry.decode())
        except UnicodeDecodeError:
            literal = repr(entry)
        lines.append(f"{token} {literal} {len(entry)}\r\n".encode())
    path.write_bytes(b"".join(lines))


def _unusable(path: Path, number: int, problem: str) -> TokenizerError:
    """Return the error of a file that is not the World vocabulary from line *number* on."""
    return TokenizerError(f"{path}, line {number}: {problem}; use {VOCABULARY_FILE} as the package rwkv ships it")


def _parse_line(line: bytes) -> tuple[int, bytes]:
    """Return id and entry of one line of the file. Raises ValueError or SyntaxError where it has another form."""
    fields = line.decode().split(" ")
    if len(fields) < 3:
        raise ValueError(f"expected '<id> <literal> <bytes>', found {line[:80]!r}")
    token, literal, n_bytes = int(fields[0]), " ".join(fields[1:-1]), int(fields[-1])
    if not 1 <= token <= LAST_ID:
        raise ValueError(f"expected an id from 1 to {LAST_ID}, found {token}")
    value = ast.literal_eval(literal)
    entry = value.encode() if isinstance(value, str) else value
    if not isinstance(entry, bytes) or not entry:
        raise ValueError(f"expected the literal of a text or of bytes, not empty, found {literal}")
    if len(entry) != n_bytes:
        raise ValueError(f"expected {n_bytes} bytes, as the last field says, found {literal} with {len(entry)}")
    return token, entry


def _prefix_tree(vocabulary: Mapping[int, bytes]) -> dict[int, _Node]:
    """Return the first bytes of all entries, each with the node it leads to."""
    first_bytes: dict[int, _Node] = {}
    # Short entries first: the node that an entry ends in is then always a new one.
    for token, entry in sorted(vocabulary.items(), key=lambda item: len(item[1])):
        longest, children = END_OF_TEXT, first_bytes
        for byte in entry[:-1]:
            longest, children = children.setdefault(byte, (longest, {}))
        children[entry[-1]] = (token, {})
    return first_bytes
