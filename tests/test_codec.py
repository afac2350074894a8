"""Codecs: text to a checkpoint's ids and back, and which codec fits which vocabulary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.codec import Codec, CodecError, check, codec_for
from tokenizer.world import TokenizerError

TEXT_CODECS = [Codec.WORLD, Codec.WORLD_BYTES, Codec.RAW_BYTES]

every_text_codec = pytest.mark.parametrize("codec", TEXT_CODECS, ids=lambda codec: codec.value)


@every_text_codec
@given(data=st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_come_back(codec: Codec, data: bytes) -> None:
    """Whatever bytes go in come out, by ids that fit each vocabulary size of the codec."""
    ids = codec.encode(data)
    assert codec.decode_bytes(ids) == data
    assert all(0 <= i < codec.sizes.start for i in ids)


@every_text_codec
@given(text=st.text())
@settings(max_examples=200)
def test_any_text_comes_back(codec: Codec, text: str) -> None:
    """A text is encoded as its UTF-8 and comes back."""
    assert codec.encode(text) == codec.encode(text.encode())
    assert codec.decode(codec.encode(text), errors="strict") == text


@pytest.mark.parametrize(
    ("codec", "ids"),
    [(Codec.WORLD, [24281, 166]), (Codec.WORLD_BYTES, [86, 116, 102, 115, 166]), (Codec.RAW_BYTES, [*b"User\xa5"])],
)
def test_known_encodings(codec: Codec, ids: list[int]) -> None:
    """The same bytes have these ids in each codec."""
    assert codec.encode(b"User\xa5") == ids


def test_world_bytes_are_the_single_bytes_of_world() -> None:
    """An id of world-bytes stands for what it stands for in the World vocabulary."""
    for i in range(257):
        assert Codec.WORLD_BYTES.decode_bytes([i]) == Codec.WORLD.decode_bytes([i])


@pytest.mark.parametrize("codec", [Codec.WORLD, Codec.WORLD_BYTES])
def test_end_of_text_has_no_bytes(codec: Codec) -> None:
    """Id 0 adds nothing to the text, and the byte 0 is another id."""
    assert codec.decode([0, *codec.encode("one"), 0, *codec.encode(" two"), 0]) == "one two"
    assert codec.encode("\x00") == [1]


def test_raw_bytes_have_no_end_of_text() -> None:
    """Id 0 of raw-bytes is the byte 0, like any other."""
    assert Codec.RAW_BYTES.decode_bytes([0, 255]) == b"\x00\xff"


@every_text_codec
def test_part_of_a_character(codec: Codec) -> None:
    """Ids that end inside a character show U+FFFD, or fail where that is asked for."""
    ids = codec.encode(b"a\xf0\x9f\xa6")
    assert codec.decode(ids) == "a\ufffd"
    with pytest.raises(UnicodeDecodeError):
        codec.decode(ids, errors="strict")


@every_text_codec
def test_ids_may_come_from_numpy(codec: Codec) -> None:
    """Ids of a sampler are as good as a list."""
    assert codec.decode(np.array(codec.encode("one"), np.int64)) == "one"


@every_text_codec
def test_batches(codec: Codec) -> None:
    """A batch is its texts, or bytes, one by one."""
    texts = ["naïve 🦜", "", "two"]
    batch = codec.encode_batch([texts[0].encode(), *texts[1:]])
    assert batch == [codec.encode(text) for text in texts]
    assert codec.decode_batch(batch) == texts
    assert codec.decode_batch([codec.encode("one"), codec.encode(b"a\xf0\x9f\xa6")]) == ["one", "a\ufffd"]
    with pytest.raises(UnicodeDecodeError):
        codec.decode_batch([codec.encode(b"a\xf0\x9f\xa6")], errors="strict")


@pytest.mark.parametrize(
    ("codec", "unknown"),
    [
        (Codec.WORLD, 65_530),
        (Codec.WORLD_BYTES, 257),
        (Codec.WORLD_BYTES, -1),
        (Codec.RAW_BYTES, 256),
        (Codec.RAW_BYTES, -1),
    ],
)
def test_unknown_id(codec: Codec, unknown: int) -> None:
    """An id that stands for nothing is an error that says which id it is and where it stands."""
    with pytest.raises(TokenizerError, match=rf"but id {unknown} stands at position 1 of 3"):
        codec.decode([33, unknown, 33])


def test_plain_ids_have_no_text() -> None:
    """Nothing can be encoded or decoded, and the error says what to do instead."""
    with pytest.raises(CodecError, match=r"codec 'ids' has no text.*'world', 'world-bytes', 'raw-bytes'"):
        Codec.PLAIN.encode("123,")
    with pytest.raises(CodecError, match="codec 'ids' has no text"):
        Codec.PLAIN.decode([1, 2, 3, 10])
    with pytest.raises(CodecError, match="codec 'ids' has no text"):
        Codec.PLAIN.decode_bytes([])
    with pytest.raises(CodecError, match="codec 'ids' has no text"):
        Codec.PLAIN.encode_batch(["123,"])
    with pytest.raises(CodecError, match="codec 'ids' has no text"):
        Codec.PLAIN.decode_batch([[1, 2, 3, 10]])


def test_names() -> None:
    """The values are what stands in grids and records."""
    assert [codec.value for codec in Codec] == ["world", "world-bytes", "raw-bytes", "ids"]


@pytest.mark.parametrize(
    ("n_vocab", "fitting"),
    [
        (1, {Codec.PLAIN}),
        (12, {Codec.PLAIN}),
        (255, {Codec.PLAIN}),
        (256, {Codec.RAW_BYTES, Codec.PLAIN}),
        (257, {Codec.WORLD_BYTES, Codec.PLAIN}),
        (65_529, {Codec.WORLD_BYTES, Codec.PLAIN}),
        (65_530, {Codec.PLAIN}),
        (65_535, {Codec.PLAIN}),
        (65_536, {Codec.WORLD, Codec.PLAIN}),
        (65_537, {Codec.PLAIN}),
        (200_000, {Codec.PLAIN}),
        (0, set()),
        (-1, set()),
    ],
)
def test_which_codecs_fit(n_vocab: int, fitting: set[Codec]) -> None:
    """Each size is accepted by exactly these codecs; the others' errors name themselves, the size and these."""
    for codec in Codec:
        if codec in fitting:
            check(codec, n_vocab)
            continue
        with pytest.raises(CodecError) as caught:
            check(codec, n_vocab)
        message = str(caught.value)
        assert f"codec {codec.value!r} expects" in message
        assert f"the checkpoint has {n_vocab}:" in message
        named = {other for other in Codec if repr(other.value) in message.split("the checkpoint has")[1]}
        assert named == fitting


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        (Codec.WORLD, "of 65536 ids"),
        (Codec.WORLD_BYTES, "of 257 to 65529 ids"),
        (Codec.RAW_BYTES, "of 256 ids"),
        (Codec.PLAIN, "of at least 1 ids"),
    ],
)
def test_expected_size_is_named(codec: Codec, expected: str) -> None:
    """The error says which sizes the codec is for."""
    with pytest.raises(CodecError, match=expected):
        check(codec, 0)


@pytest.mark.parametrize(
    ("n_vocab", "codec"),
    [
        (1, Codec.PLAIN),
        (12, Codec.PLAIN),
        (255, Codec.PLAIN),
        (256, Codec.RAW_BYTES),
        (257, Codec.WORLD_BYTES),
        (1024, Codec.WORLD_BYTES),
        (1025, Codec.PLAIN),
        (50_277, Codec.PLAIN),
        (65_536, Codec.WORLD),
    ],
)
def test_likely_codec(n_vocab: int, codec: Codec) -> None:
    """The guess goes by the size alone."""
    assert codec_for(n_vocab) is codec


@given(n_vocab=st.integers(1, 100_000))
def test_likely_codec_fits(n_vocab: int) -> None:
    """The guess is always a codec that fits."""
    check(codec_for(n_vocab), n_vocab)


@pytest.mark.parametrize("n_vocab", [0, -1])
def test_no_codec_for_no_vocabulary(n_vocab: int) -> None:
    """A vocabulary without ids is an error, not plain ids."""
    with pytest.raises(CodecError, match="no codec fits"):
        codec_for(n_vocab)
