"""Decoding ids as they come: nothing is shown too early, and nothing is lost."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.codec import Codec, CodecError
from tokenizer.stream import StreamDecoder
from tokenizer.world import TokenizerError

TEXT_CODECS = [Codec.WORLD, Codec.WORLD_BYTES, Codec.RAW_BYTES]

every_text_codec = pytest.mark.parametrize("codec", TEXT_CODECS, ids=lambda codec: codec.value)
many_examples = settings(max_examples=300)
cuts = st.lists(st.integers(0, 200))
# Characters of one to four bytes, and pieces of them.
broken_text = st.lists(
    st.sampled_from([*"aé今🦜\ufffd".encode(), *(c.encode() for c in "aé今🦜\ufffd")]).map(
        lambda piece: bytes([piece]) if isinstance(piece, int) else piece
    ),
    max_size=20,
).map(b"".join)


def pieces(ids: list[int], places: list[int]) -> list[list[int]]:
    """Cut *ids* at *places*; some pieces may be empty."""
    ends = sorted(min(place, len(ids)) for place in places)
    return [ids[start:end] for start, end in pairwise([0, *ends, len(ids)])]


@every_text_codec
@given(data=st.binary(max_size=100) | broken_text, places=cuts)
@many_examples
def test_pieces_give_the_whole(codec: Codec, data: bytes, places: list[int]) -> None:
    """However the ids of any bytes are cut, the text is that of decoding them at once."""
    ids = codec.encode(data)
    decoder = StreamDecoder(codec)
    shown = [decoder.feed(*piece) for piece in pieces(ids, places)]
    assert "".join(shown) + decoder.finish() == codec.decode(ids) == data.decode(errors="replace")


@every_text_codec
@given(text=st.text(max_size=60))
@many_examples
def test_characters_show_when_they_are_whole(codec: Codec, text: str) -> None:
    """Id by id, all whole characters so far are shown, and never U+FFFD for one that is yet to come."""
    ids = codec.encode(text)
    decoder = StreamDecoder(codec, errors="strict")
    shown = ""
    for end, token in enumerate(ids, start=1):
        shown += decoder.feed(token)
        assert shown == codec.decode_bytes(ids[:end]).decode(errors="ignore")
    assert shown == text
    assert decoder.finish() == ""


def test_a_character_over_several_ids() -> None:
    """The parrot is three ids of World: the first two show nothing, the last all of it."""
    ids = Codec.WORLD.encode("🦜")
    assert len(ids) == 3
    decoder = StreamDecoder(Codec.WORLD)
    assert [decoder.feed(token) for token in ids] == ["", "", "🦜"]


def test_what_cannot_become_a_character() -> None:
    """Bytes that the next one shows to be no character are replaced at once, not at the end."""
    decoder = StreamDecoder(Codec.RAW_BYTES)
    assert decoder.feed(0xF0, 0x9F) == ""
    assert decoder.feed(ord("a")) == "\ufffda"
    assert decoder.finish() == ""


def test_end_of_text_shows_nothing() -> None:
    """Id 0 adds no text, not even inside a character."""
    first, second, third = Codec.WORLD.encode("🦜")
    decoder = StreamDecoder(Codec.WORLD)
    assert decoder.feed(0, first, 0) == ""
    assert decoder.feed(second, 0, third, 0) == "🦜"
    assert decoder.feed() == decoder.finish() == ""


@every_text_codec
def test_finish_tells_what_is_left(codec: Codec) -> None:
    """An unfinished character is U+FFFD or an error at the end; then the decoder serves another text."""
    half = codec.encode("a🦜".encode()[:-1])
    lenient = StreamDecoder(codec)
    strict = StreamDecoder(codec, errors="strict")
    for _ in range(2):
        assert lenient.feed(*half) == strict.feed(*half) == "a"
        assert lenient.finish() == "\ufffd"
        with pytest.raises(UnicodeDecodeError):
            strict.finish()


def test_an_error_takes_nothing() -> None:
    """After an id that stands for nothing, or bytes that strictness refuses, the stream goes on as before."""
    first, *rest = Codec.WORLD.encode("🦜")
    decoder = StreamDecoder(Codec.WORLD, errors="strict")
    decoder.feed(first)
    with pytest.raises(TokenizerError, match="id 65530 stands at position 1 of 2"):
        decoder.feed(rest[0], 65_530)
    with pytest.raises(UnicodeDecodeError):
        decoder.feed(*Codec.WORLD.encode("a"))
    assert decoder.feed(*rest) == "🦜"


def test_plain_ids_have_no_text() -> None:
    """The error comes before the first id."""
    with pytest.raises(CodecError, match="codec 'ids' has no text"):
        StreamDecoder(Codec.PLAIN)
