"""The World tokenizer is at least as fast as the trie tokenizer of the package rwkv, on all of LAMBADA."""

import json

import pytest
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

from tokenizer.world import WorldTokenizer, find_vocabulary


@pytest.fixture(scope="module")
def ours() -> WorldTokenizer:
    """Return our tokenizer."""
    return WorldTokenizer.load()


@pytest.fixture(scope="module")
def theirs() -> TRIE_TOKENIZER:
    """Return the package rwkv's tokenizer."""
    return TRIE_TOKENIZER(str(find_vocabulary()))


@pytest.fixture(scope="module")
def texts(shared_data) -> list[str]:
    """Return the passages of LAMBADA."""
    lines = (shared_data / "lambada" / "lambada_test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_encode(compare, ours, theirs, texts):
    """Text to ids, passage by passage."""
    ratio = compare(lambda: ours.encode_batch(texts), lambda: [theirs.encode(text) for text in texts])
    assert ratio.value >= 1, ratio


def test_decode(compare, ours, theirs, texts):
    """Ids to text; ten times over, as once is soon done."""
    batch = ours.encode_batch(texts) * 10
    ratio = compare(lambda: ours.decode_batch(batch), lambda: [theirs.decode(ids) for ids in batch])
    assert ratio.value >= 1, ratio
