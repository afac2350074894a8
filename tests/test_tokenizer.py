"""The World tokenizer against the definition of the longest match and against two other implementations."""

import contextlib
import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrwkv_tokenizer import RWKVTokenizer
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

from tokenizer.world import (
    LAST_ID,
    VOCABULARY_FILE,
    TokenizerError,
    WorldTokenizer,
    _parse_line,
    find_vocabulary,
    read_vocabulary,
    write_vocabulary,
)

REPOSITORY = Path(__file__).parents[1]
SINGLE_BYTES = {byte + 1: bytes([byte]) for byte in range(256)}

# Computed by the method encodeBytes of TRIE_TOKENIZER in the package rwkv 0.8.32.
KNOWN = [
    (b"", []),
    (b"\x00", [1]),
    (b"\n\n", [261]),
    (b"User: Hello!\n\nAssistant:", [24281, 59, 36786, 34, 261, 5585, 41693, 59]),
    (
        b"The quick brown fox jumps over the lazy dog.",
        [6699, 39418, 37917, 21704, 38828, 31601, 22590, 31261, 21551, 47],
    ),
    (b"  indented\n\tcode();\r\n", [267, 41621, 1843, 260, 25036, 5269, 263]),
    (b"a" * 20, [53739, 53739, 24364]),
    (b" " * 130, [65529, 267]),
    (b"123456 7.5", [632, 654, 676, 290, 47, 54]),
    ("Übergröße".encode(), [2490, 24863, 115, 36152]),
    ("今天是美好的一天。".encode(), [10381, 11639, 13091, 15597, 11685, 14734, 10250, 11639, 10080]),
    ("naïve café 🦜".encode(), [2059, 27698, 37946, 33, 3319, 167, 157]),
    (b"\xff\xfe", [256, 255]),
    (b"\xf0\x9f\xa6", [3319, 167]),
    (b"\x80\x81\xe4\xb8\x80", [129, 130, 10250]),
]

many_examples = settings(max_examples=200)
any_ids = st.lists(st.integers(0, LAST_ID), max_size=40)


@pytest.fixture(scope="module")
def world() -> WorldTokenizer:
    """Return the tokenizer with the real vocabulary."""
    return WorldTokenizer.load()


@pytest.fixture(scope="module")
def rust() -> RWKVTokenizer:
    """Return the package pyrwkv-tokenizer's tokenizer, with its own copy of the vocabulary; it takes only text."""
    return RWKVTokenizer()


@pytest.fixture(scope="module")
def trie() -> TRIE_TOKENIZER:
    """Return the package rwkv's tokenizer: slow to load, but it takes any bytes."""
    return TRIE_TOKENIZER(str(find_vocabulary()))


@pytest.fixture(scope="module")
def vocabulary_lines() -> list[bytes]:
    """Return the lines of the vocabulary file, without their ends."""
    return find_vocabulary().read_bytes().splitlines()


@pytest.fixture(scope="module")
def world_ids(world: WorldTokenizer) -> dict[bytes, int]:
    """Return the entries of the World vocabulary, each with its id."""
    return {entry: token for token, entry in world.vocabulary.items() if token}


def longest_match(ids: Mapping[bytes, int], data: bytes) -> list[int]:
    """Return the ids of *data* by the definition: at each place try every length, the longest first."""
    found = []
    at = 0
    while at < len(data):
        entry = next(data[at:end] for end in range(len(data), at, -1) if data[at:end] in ids)
        found.append(ids[entry])
        at += len(entry)
    return found


@pytest.mark.parametrize(("data", "ids"), KNOWN)
def test_known_encodings(world: WorldTokenizer, data: bytes, ids: list[int]) -> None:
    """Texts and bytes have the ids that BlinkDL's tokenizer gives them."""
    assert world.encode_bytes(data) == ids
    assert world.decode_bytes(ids) == data


def test_text_is_encoded_as_utf8(world: WorldTokenizer) -> None:
    """A text has the ids of its UTF-8 bytes, and comes back."""
    text = "naïve café 🦜 今天"
    assert world.encode(text) == world.encode_bytes(text.encode())
    assert world.decode(world.encode(text), errors="strict") == text


def test_every_entry_is_its_own_encoding(world: WorldTokenizer, rust: RWKVTokenizer, trie: TRIE_TOKENIZER) -> None:
    """Each entry of the vocabulary encodes to its id alone, and so it does in the other implementations."""
    wrong = []
    for token in range(1, LAST_ID + 1):
        entry = world.vocabulary[token]
        theirs = trie.encodeBytes(entry)
        with contextlib.suppress(UnicodeDecodeError):  # part of a character, and pyrwkv-tokenizer takes only text
            text = entry.decode()
            theirs = rust.encode(text)
            if rust.decode([token]) != text:
                wrong.append(token)
        if not (world.encode_bytes(entry) == theirs == [token] and world.decode_bytes([token]) == entry):
            wrong.append(token)
    assert wrong == []


def test_lambada(world: WorldTokenizer, rust: RWKVTokenizer, shared_data: Path) -> None:
    """All of LAMBADA has the same ids in both implementations, and comes back."""
    lines = (shared_data / "lambada" / "lambada_test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == 5153
    ids = [world.encode(text) for text in texts]
    assert ids == [rust.encode(text) for text in texts]
    assert [world.decode(i, errors="strict") for i in ids] == texts
    assert world.encode_batch(texts) == rust.encode_batch(texts) == ids
    assert world.decode_batch(ids, errors="strict") == texts


def test_lambada_sample_in_the_package_rwkv(world: WorldTokenizer, trie: TRIE_TOKENIZER, shared_data: Path) -> None:
    """Every tenth passage of LAMBADA has the ids that BlinkDL's tokenizer gives it."""
    lines = (shared_data / "lambada" / "lambada_test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[::10]]
    assert [world.encode(text) for text in texts] == [trie.encode(text) for text in texts]


@given(text=st.text())
@many_examples
def test_random_unicode(world: WorldTokenizer, rust: RWKVTokenizer, trie: TRIE_TOKENIZER, text: str) -> None:
    """Any text has the same ids in all three implementations, and comes back from each."""
    ids = world.encode(text)
    assert ids == rust.encode(text) == trie.encode(text)
    assert world.decode(ids, errors="strict") == rust.decode(ids) == text


@given(data=st.binary(max_size=200))
@many_examples
def test_random_bytes(world: WorldTokenizer, rust: RWKVTokenizer, trie: TRIE_TOKENIZER, data: bytes) -> None:
    """Any bytes have the ids that BlinkDL's tokenizer gives them, and come back.

    pyrwkv-tokenizer takes only text: it gives the same ids for what the bytes show as text.
    """
    ids = world.encode_bytes(data)
    assert ids == trie.encodeBytes(data)
    assert world.decode_bytes(ids) == data
    text = world.decode(ids)
    assert world.encode(text) == rust.encode(text)


@given(ids=any_ids)
@many_examples
def test_random_entries(world: WorldTokenizer, trie: TRIE_TOKENIZER, ids: list[int]) -> None:
    """Bytes made of whole entries, where matches are long and ambiguous, have the ids that BlinkDL's gives them."""
    data = world.decode_bytes(ids)
    assert world.encode_bytes(data) == trie.encodeBytes(data)


@given(ids=any_ids, tail=st.binary(max_size=8))
@many_examples
def test_no_longer_entry_matches(
    world: WorldTokenizer, world_ids: dict[bytes, int], ids: list[int], tail: bytes
) -> None:
    """At each place, no entry longer than the chosen one matches."""
    data = world.decode_bytes(ids) + tail
    assert world.encode_bytes(data) == longest_match(world_ids, data)


@given(
    entries=st.sets(st.binary(min_size=2, max_size=6).map(lambda data: bytes(97 + byte % 2 for byte in data))),
    data=st.binary(max_size=40).map(lambda data: bytes(97 + byte % 2 for byte in data)),
)
@many_examples
def test_any_vocabulary(entries: set[bytes], data: bytes) -> None:
    """The longest match does not lean on the World vocabulary: entries need not have their prefixes as entries."""
    vocabulary = SINGLE_BYTES | dict(enumerate(sorted(entries), start=257))
    ids = {entry: token for token, entry in vocabulary.items()}
    assert WorldTokenizer(vocabulary).encode_bytes(data) == longest_match(ids, data)


def test_end_of_text_has_no_bytes(world: WorldTokenizer) -> None:
    """Id 0 may stand anywhere and adds nothing to the text; no text encodes to it."""
    assert world.decode([0, *world.encode("one"), 0, 0, *world.encode(" two"), 0]) == "one two"
    assert world.encode("\x00") == [1]


@pytest.mark.parametrize("unknown", [-1, 65_530, 65_535, 10**9])
def test_unknown_id(world: WorldTokenizer, unknown: int) -> None:
    """An id without an entry is an error that says which id it is and where it stands."""
    with pytest.raises(TokenizerError, match=rf"from 0 to 65529, but id {unknown} stands at position 2 of 4"):
        world.decode(iter([33, 34, unknown, 70_000]))


def test_ids_may_come_from_numpy_or_an_iterator(world: WorldTokenizer) -> None:
    """Ids of a sampler, in whatever integer type, are as good as a list."""
    ids = world.encode("User: Hello!")
    assert world.decode(np.array(ids, np.int64)) == world.decode(np.array(ids, np.uint16)) == "User: Hello!"
    assert world.decode(iter(ids)) == "User: Hello!"


def test_batches(world: WorldTokenizer) -> None:
    """A batch is its texts, one by one, of any length and from any iterable; ids may be rows of an array."""
    texts = ["User: Hello!", "", "naïve 🦜"]
    batch = world.encode_batch(iter(texts))
    assert batch == [world.encode(text) for text in texts]
    assert world.decode_batch(iter(batch)) == texts
    assert world.decode_batch(np.array([[0, 0, 98], [98, 99, 100]])) == ["a", "abc"]
    assert world.encode_batch([]) == world.decode_batch([]) == []


def test_errors_in_a_batch(world: WorldTokenizer) -> None:
    """A batch with one bad text fails as that text does; halves of characters show or fail, as asked."""
    with pytest.raises(UnicodeEncodeError):
        world.encode_batch(["a", "a\ud800"])
    with pytest.raises(TokenizerError, match="id 65530 stands at position 0 of 1"):
        world.decode_batch([[98], [65_530]])
    assert world.decode_batch([[98], [167]]) == ["a", "\ufffd"]
    with pytest.raises(UnicodeDecodeError):
        world.decode_batch([[98], [167]], errors="strict")


def test_copies(world: WorldTokenizer) -> None:
    """A tokenizer can go to another process, or be copied, and stays the same."""
    text = "User: naïve café 🦜"
    for other in (pickle.loads(pickle.dumps(world)), copy.deepcopy(world)):  # noqa: S301 - our own bytes
        assert other.vocabulary == world.vocabulary
        assert other.encode(text) == world.encode(text)


def test_part_of_a_character(world: WorldTokenizer) -> None:
    """Ids that end inside a character show U+FFFD, or fail where that is asked for."""
    ids = world.encode("a🦜")[:-1]
    assert world.decode(ids) == "a\ufffd"
    with pytest.raises(UnicodeDecodeError):
        world.decode(ids, errors="strict")


def test_lone_surrogate(world: WorldTokenizer) -> None:
    """A text that has no UTF-8 is refused, not altered."""
    with pytest.raises(UnicodeEncodeError):
        world.encode("a\ud800")


def test_loading_does_not_import_rwkv() -> None:
    """The vocabulary is found without running any code of the package that it lies in."""
    code = (
        "import sys; from tokenizer.world import WorldTokenizer; WorldTokenizer.load(); "
        "print([name for name in sys.modules if name.split('.')[0] in ('rwkv', 'torch', 'numpy')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_package_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the error says what to install."""
    monkeypatch.delitem(sys.modules, "rwkv", raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(TokenizerError, match="not installed: install rwkv, or name a file"):
        find_vocabulary()


def test_package_without_vocabulary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package of that name that has no vocabulary is named by its folder."""
    (tmp_path / "rwkv").mkdir()
    (tmp_path / "rwkv" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "rwkv", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TokenizerError, match=f"found no such file in {tmp_path}"):
        find_vocabulary()


def test_load_from_a_path(world: WorldTokenizer, vocabulary_lines: list[bytes], tmp_path: Path) -> None:
    """The file may lie anywhere and end its lines either way."""
    path = tmp_path / VOCABULARY_FILE
    path.write_bytes(b"\n".join(vocabulary_lines))
    assert WorldTokenizer.load(path).vocabulary == world.vocabulary


def test_written_vocabulary(world: WorldTokenizer, vocabulary_lines: list[bytes], tmp_path: Path) -> None:
    """A vocabulary that is written has the lines of the package's file."""
    path = tmp_path / VOCABULARY_FILE
    write_vocabulary(path, world.vocabulary)
    assert read_vocabulary(path) == read_vocabulary(find_vocabulary())
    assert len(path.read_bytes().splitlines()) == len(vocabulary_lines)


@given(entries=st.sets(st.binary(min_size=2) | st.text(min_size=1).map(str.encode)))
@settings(max_examples=200)
def test_any_entry_can_be_written(tmp_path_factory: pytest.TempPathFactory, entries: set[bytes]) -> None:
    """Whatever bytes an entry has, quotes and line ends included, its line is one line and reads the same."""
    path = tmp_path_factory.mktemp("vocabulary") / VOCABULARY_FILE
    vocabulary = dict(enumerate(entries, start=1))
    write_vocabulary(path, {0: b"", **vocabulary})
    assert dict(_parse_line(line) for line in path.read_bytes().splitlines()) == vocabulary


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "expected '<id> <literal> <bytes>'"),
        (b"2", "expected '<id> <literal> <bytes>'"),
        (b"2 'b'", "expected '<id> <literal> <bytes>'"),
        (b"two 'b' 1", "invalid literal for int"),
        (b"2 'b' one", "invalid literal for int"),
        (b"2 'b' 2", "expected 2 bytes, as the last field says, found 'b' with 1"),
        (b"2 '\xc3\xa4' 1", "expected 1 bytes"),
        (b"2 '\xe4' 1", "can't decode byte"),
        (b"2 '\\ud800' 3", "surrogates not allowed"),
        (b"2 '' 0", "not empty"),
        (b"2 ['b'] 1", "expected the literal of a text or of bytes"),
        (b"2 open('b') 1", "malformed node"),
        (b"2 'b 1", "unterminated string"),
        (b"0 'b' 1", "expected an id from 1 to 65529, found 0"),
        (b"65530 'b' 1", "expected an id from 1 to 65529, found 65530"),
        (b"1 'b' 1", "id 1 comes a second time"),
        (b"2 'a' 1", "b'a' comes a second time, first as id 1"),
        (b"2 b'a' 1", "b'a' comes a second time, first as id 1"),
        (b"2 'b' 1", "the file ends here, expected 65529 entries"),
    ],
)
def test_unusable_line(tmp_path: Path, line: bytes, problem: str) -> None:
    """A line that is not right is an error that names file, line and fault."""
    path = tmp_path / VOCABULARY_FILE
    path.write_bytes(b"1 'a' 1\r\n" + line + b"\r\n")
    with pytest.raises(TokenizerError) as caught:
        read_vocabulary(path)
    assert f"{path}, line 2: " in str(caught.value)
    assert problem in str(caught.value)


def test_truncated_file(vocabulary_lines: list[bytes], tmp_path: Path) -> None:
    """A vocabulary without its last entry is refused: it would encode almost everything as before."""
    path = tmp_path / VOCABULARY_FILE
    path.write_bytes(b"\n".join(vocabulary_lines[:-1]))
    with pytest.raises(TokenizerError, match="line 65528: the file ends here, expected 65529 entries"):
        read_vocabulary(path)


@pytest.mark.parametrize("token", [1, 98, 256])
def test_single_bytes_must_be_there(token: int) -> None:
    """A vocabulary in which a byte has no entry at its place cannot encode everything, and is refused."""
    vocabulary = {other: entry for other, entry in SINGLE_BYTES.items() if other != token}
    with pytest.raises(TokenizerError, match=f"id {token} of the vocabulary should be .* but is None"):
        WorldTokenizer(vocabulary)
    with pytest.raises(TokenizerError, match=f"id {token} of the vocabulary should be .* but is b'other'"):
        WorldTokenizer(vocabulary | {token: b"other"})
