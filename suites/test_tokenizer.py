"""The codec turns text into the ids that the checkpoint was trained on, and back."""

import pytest

from tokenizer.codec import Codec
from tokenizer.world import WorldTokenizer

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
