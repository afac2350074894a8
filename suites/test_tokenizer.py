"""The codec turns text into the ids that the checkpoint was trained on, and back."""

import random

import pytest

from tokenizer.codec import Codec
from tokenizer.stream import StreamDecoder
from tokenizer.world import END_OF_TEXT, WorldTokenizer

KNOWN = {
    "Hello world": [33155, 40213],
    "User: Hi!\n\nAssistant:": [24281, 59, 3880, 34, 261, 5585, 41693, 59],
    "def f(x):\n    return x": [7334, 337, 41, 121, 501, 28352, 42178, 355],
    "北京 🙂": [10902, 10362, 32845],
    "  2026-11-20\r\n": [267, 640, 646, 46, 631, 46, 640, 263],
}
"""Encodings that the tokenizer of the package rwkv 0.8.32 gives."""


def test_round_trip(model, check):
    """Every byte, and text of several scripts, comes back from its ids."""
    if model.codec is Codec.PLAIN:
        pytest.skip("plain ids have no text")
    for data in (bytes(range(256)), "naïve 北京 🙂\n\n\t  x".encode()):
        ids = model.codec.encode(data)
        assert max(ids) < model.checkpoint.shape.n_vocab
        check.equal(data, model.codec.decode_bytes(ids), "round trip")


def test_known_encodings(check):
    """The World tokenizer gives the ids that RWKV's own gives."""
    tokenizer = WorldTokenizer.load()
    for text, ids in KNOWN.items():
        check.equal(ids, tokenizer.encode(text), repr(text))


def test_longest_match(check):
    """At each position the longest entry wins."""
    tokenizer = WorldTokenizer.load()
    entries = set(tokenizer.vocabulary.values())
    longest = max(map(len, entries))
    data = "In 1986, größer als gedacht — 像一块灰色的石头。\n\n    return x".encode()
    position = 0
    for token in tokenizer.encode_bytes(data):
        entry = tokenizer.vocabulary[token]
        want = next(
            data[position : position + n] for n in range(longest, 0, -1) if data[position : position + n] in entries
        )
        check.equal(want, entry, f"byte {position}")
        position += len(entry)
    check.equal(len(data), position, "bytes covered")


def test_every_entry(check):
    """Each entry of the vocabulary is the encoding of its own bytes, and comes back from it."""
    tokenizer = WorldTokenizer.load()
    for token, entry in tokenizer.vocabulary.items():
        if token != END_OF_TEXT:
            check.equal([token], tokenizer.encode_bytes(entry), f"encoding of entry {token}, {entry!r}")
            check.equal(entry, tokenizer.decode_bytes([token]), f"bytes of entry {token}")
    check.metrics["entries"] = len(tokenizer.vocabulary) - 1


def test_arbitrary_bytes(model, check):
    """Bytes that are no text at all come back, whatever the checkpoint's codec."""
    if model.codec is Codec.PLAIN:
        pytest.skip("plain ids have no text")
    for data in arbitrary(count=200):
        check.equal(data, model.codec.decode_bytes(model.codec.encode(data)), "round trip")


def test_streaming_decode(check):
    """Id by id, the text is that of all ids at once: no character is shown too early, cut, or lost."""
    for codec in (Codec.WORLD, Codec.WORLD_BYTES):
        for data in (*arbitrary(count=50), "naïve 北京 🙂 größer\n".encode()):
            decoder, shown, ids = StreamDecoder(codec), "", codec.encode(data)
            for end, token in enumerate(ids, 1):
                shown += decoder.feed(token)
                whole = codec.decode_bytes(ids[:end]).decode(errors="replace")
                check.equal(whole.rstrip("\ufffd"), shown.rstrip("\ufffd"), f"shown after {end} ids of {data!r}")
            check.equal(data.decode(errors="replace"), shown + decoder.finish(), f"all of {data!r}")


def arbitrary(count):
    """The same *count* strings of any bytes each time, of 1 to 64."""
    rng = random.Random(0)  # noqa: S311 - reproducible, not secret
    return [rng.randbytes(rng.randrange(1, 65)) for _ in range(count)]
