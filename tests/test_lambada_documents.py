"""The LAMBADA file: found, checked, downloaded, cut to fixed subsets, and turned into tokens."""

import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.lambada.documents import DOWNLOAD_COMMAND, FILE_NAME, SHA256, DataError, Document, fetch, find_data, read
from harness.lambada.documents import subset as subset_of
from harness.lambada.protocol import to_text
from tokenizer.codec import Codec, CodecError

PASSAGES = ["the cat sat", "a b c", "the cat sat", "one\n\ntwo “three” four"]
CONTENT = "".join(json.dumps({"text": passage}) + "\n" for passage in PASSAGES).encode()
CONTENT_SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def data_file(tmp_path):
    """A small data file."""
    path = tmp_path / "small.jsonl"
    path.write_bytes(CONTENT)
    return path


class Remembers(SimpleHTTPRequestHandler):
    """Serves a folder and remembers what was asked for."""

    def log_message(self, *_):
        """Remember instead of printing."""
        self.server.asked.append(self.path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine: its folder, its address, and what it was asked for."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Remembers, directory=folder)) as http:
        http.asked = []
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_port}", http.asked
        http.shutdown()
        thread.join()


def test_real_file(shared_data):
    """The real file has 5,153 passages, each with an id of its own though two texts stand in it twice."""
    documents = read(shared_data / "lambada" / FILE_NAME)
    assert len(documents) == len({document.id for document in documents}) == 5153
    assert sum(document.id.endswith("-2") for document in documents) == 2
    assert documents[0].text.startswith("In my palm is a clear stone, and inside it")
    assert documents[0].text.endswith("I don't care about signs")


def test_ids_are_hashes_of_the_text(data_file):
    """An id is the beginning of the text's SHA-256; the second of two equal texts is marked."""
    documents = read(data_file, CONTENT_SHA256)
    cat, letters = (hashlib.sha256(text).hexdigest()[:12] for text in (b"the cat sat", b"a b c"))
    assert [document.id for document in documents[:3]] == [cat, letters, f"{cat}-2"]
    assert [document.text for document in documents] == PASSAGES


def test_an_altered_file_is_refused(data_file):
    """One changed byte: the error names both hashes and the command that downloads the file."""
    data_file.write_bytes(CONTENT.replace(b"sat", b"cat", 1))
    with pytest.raises(DataError) as caught:
        read(data_file, CONTENT_SHA256)
    found = hashlib.sha256(data_file.read_bytes()).hexdigest()
    for part in (str(data_file), CONTENT_SHA256, found, DOWNLOAD_COMMAND):
        assert part in str(caught.value)
    with pytest.raises(DataError, match=SHA256):
        read(data_file)


def test_an_unreadable_file_is_an_error(tmp_path):
    """A folder in place of the file is named."""
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path)


def test_where_the_file_is_looked_for(data_file, tmp_path):
    """The given file counts, then the shared one, then the downloaded one."""
    shared, cache = tmp_path / "shared.jsonl", tmp_path / "cache"
    downloaded = cache / "lambada" / FILE_NAME
    with pytest.raises(DataError) as caught:
        find_data(None, cache, shared)
    for part in (str(shared), str(downloaded), DOWNLOAD_COMMAND, "--data FILE"):
        assert part in str(caught.value)
    downloaded.parent.mkdir(parents=True)
    downloaded.write_bytes(CONTENT)
    assert find_data(None, cache, shared) == downloaded
    shared.write_bytes(CONTENT)
    assert find_data(None, cache, shared) == shared
    assert find_data(data_file, cache, shared) == data_file
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        find_data(tmp_path / "missing.jsonl", cache, shared)


def test_fetch_keeps_the_right_file(server, tmp_path):
    """It is downloaded once; one that was altered since is downloaded again."""
    folder, address, asked = server
    (folder / "x.jsonl").write_bytes(CONTENT)
    path = fetch(tmp_path / "cache", f"{address}/x.jsonl", CONTENT_SHA256)
    assert path.read_bytes() == CONTENT
    assert path == find_data(None, tmp_path / "cache", tmp_path / "nothing")
    fetch(tmp_path / "cache", f"{address}/x.jsonl", CONTENT_SHA256)
    assert asked == ["/x.jsonl"]
    path.write_bytes(b"spoilt")
    assert fetch(tmp_path / "cache", f"{address}/x.jsonl", CONTENT_SHA256).read_bytes() == CONTENT


def test_fetch_refuses_another_file(server, tmp_path):
    """A file with another hash is an error that names the right one, and nothing of it stays."""
    folder, address, _ = server
    (folder / "x.jsonl").write_bytes(CONTENT + b"\n")
    with pytest.raises(DataError, match=CONTENT_SHA256):
        fetch(tmp_path / "cache", f"{address}/x.jsonl", CONTENT_SHA256)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_fetch_without_the_file_or_the_network(server, tmp_path):
    """A missing page and a missing server are errors that say how to go on."""
    _, address, _ = server
    with pytest.raises(DataError, match=r"404.*\n.*--data FILE"):
        fetch(tmp_path / "cache", f"{address}/x.jsonl", CONTENT_SHA256)
    with pytest.raises(DataError, match=r"cannot be downloaded.*\n.*--data FILE"):
        fetch(tmp_path / "cache", "http://127.0.0.1:9/x.jsonl", CONTENT_SHA256)


@given(texts=st.lists(st.text(max_size=5), max_size=30), sizes=st.tuples(st.integers(1, 35), st.integers(1, 35)))
def test_subsets_are_nested(texts, sizes):
    """A subset has the size asked for and the file's order, and is part of every larger one."""
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    small, large = (subset_of(documents, size) for size in sorted(sizes))
    assert len(small) == min(*sizes, len(texts))
    assert set(small) <= set(large)
    assert list(large) == [document for document in documents if document in large]
    assert list(subset_of(documents, None)) == documents


def test_subset_does_not_depend_on_the_order():
    """The same texts in another order give the same subset, and it is this one: smallest SHA-256 first."""
    texts = [f"passage {i}" for i in range(50)]
    forwards, backwards = (subset_of([Document(t, t) for t in order], 7) for order in (texts, texts[::-1]))
    assert forwards == backwards[::-1]
    smallest = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())[:7]
    assert {document.text for document in forwards} == set(smallest)


@pytest.mark.parametrize(
    ("codec", "passage", "prompt", "continuation"),
    [
        (Codec.RAW_BYTES, "a b c", [0, 97, 32, 98], [32, 99]),
        (Codec.WORLD_BYTES, "a b c", [0, 98, 33, 99], [33, 100]),
        (Codec.WORLD, "The cat sat", [0, 6699, 21417], [22436]),  # lines of the vocabulary: 'The', ' cat', ' sat'
        (Codec.WORLD, "The cat 雨", [0, 6699, 21417], [33, 17865]),  # a word of two tokens: ' ', '雨'
    ],
)
def test_protocol_by_hand(codec, passage, prompt, continuation):
    """Token 0 in front, split at the last space, and the space belongs to the word."""
    assert to_text(passage, codec) == (prompt, continuation)


def test_protocol_on_the_real_first_passage(shared_data):
    """The first passage ends in the World vocabulary's entry for ' signs'."""
    prompt, continuation = to_text(read(shared_data / "lambada" / FILE_NAME)[0].text, Codec.WORLD)
    assert prompt[0] == 0
    assert continuation == [39686]


@pytest.mark.parametrize("codec", [Codec.WORLD, Codec.WORLD_BYTES, Codec.RAW_BYTES], ids=lambda codec: codec.value)
@given(context=st.text(max_size=60), word=st.text(max_size=12).filter(lambda word: " " not in word))
def test_nothing_of_a_passage_is_lost(codec, context, word):
    """Prompt without token 0, and continuation, decode to the passage; the continuation to the space and the word."""
    prompt, continuation = to_text(f"{context} {word}", codec)
    assert codec.decode([*prompt[1:], *continuation], errors="strict") == f"{context} {word}"
    assert codec.decode(continuation, errors="strict") == f" {word}"


def test_what_cannot_be_asked():
    """Ids without text, and a passage of one word, are errors."""
    with pytest.raises(CodecError, match="no text"):
        to_text("a b", Codec.PLAIN)
    with pytest.raises(ValueError, match="word"):
        to_text("word", Codec.WORLD)
