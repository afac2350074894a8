"""How a checkpoint's ids relate to text."""

import functools
import sys
from collections.abc import Iterable
from enum import Enum
from types import MappingProxyType

from tokenizer.world import END_OF_TEXT, LAST_ID, Errors, TokenizerError, WorldTokenizer, join_entries

WORLD_SIZE = 65_536  # id 0, the 65,529 entries, and six ids without one that round the head up
RAW_BYTES_SIZE = 256
WORLD_BYTES_MIN_SIZE = 257
LARGEST_LIKELY_WORLD_BYTES = 1024  # a byte model may pad its head a little; a larger vocabulary has other entries

_RAW_BYTES = MappingProxyType({byte: bytes([byte]) for byte in range(256)})
_WORLD_BYTES = MappingProxyType({END_OF_TEXT: b""} | {byte + 1: bytes([byte]) for byte in range(256)})


class CodecError(TokenizerError):
    """A codec that does not fit the vocabulary, or that has no text."""


class Codec(Enum):
    """The relation between a checkpoint's ids and text; every checkpoint is bound to one."""

    WORLD = "world"
    """The World vocabulary, for 65,536 ids. Id 0 is the end of text."""

    WORLD_BYTES = "world-bytes"
    """Ids 1 to 256 are the bytes 0 to 255, as in the World vocabulary; id 0 is the end of text."""

    RAW_BYTES = "raw-bytes"
    """The id is the byte; there is no end of text."""

    PLAIN = "ids"
    """Ids without text."""

    @property
    def sizes(self) -> range:
        """The vocabulary sizes that this codec fits, in ids."""
        match self:
            case Codec.WORLD:
                return range(WORLD_SIZE, WORLD_SIZE + 1)
            case Codec.WORLD_BYTES:
                return range(WORLD_BYTES_MIN_SIZE, LAST_ID + 1)
            case Codec.RAW_BYTES:
                return range(RAW_BYTES_SIZE, RAW_BYTES_SIZE + 1)
            case Codec.PLAIN:
                return range(1, sys.maxsize)

    def encode(self, text: str | bytes) -> list[int]:
        """Return the ids of *text*: a str as its UTF-8, bytes as they are. The end of text is never added.

        Raises CodecError where ids have no text, and UnicodeEncodeError on a lone surrogate.
        """
        data = text.encode() if isinstance(text, str) else text
        match self:
            case Codec.WORLD:
                return _world().encode_bytes(data)
            case Codec.WORLD_BYTES:
                return [byte + 1 for byte in data]
            case Codec.RAW_BYTES:
                return list(data)
            case Codec.PLAIN:
                raise _no_text()

    def decode(self, ids: Iterable[int], errors: Errors = "replace") -> str:
        """Return the text of *ids*.

        Where they begin or end inside a character, or are no UTF-8 at all, "replace" shows U+FFFD and "strict"
        raises UnicodeDecodeError. Raises as `decode_bytes` does.
        """
        return self.decode_bytes(ids).decode(errors=errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of *ids*; an end of text adds none.

        Raises CodecError where ids have no text, and TokenizerError, with id and position, where one of them stands
        for nothing: a head may have more rows than its codec has entries.
        """
        match self:
            case Codec.WORLD:
                return _world().decode_bytes(ids)
            case Codec.WORLD_BYTES:
                return join_entries(_WORLD_BYTES, ids)
            case Codec.RAW_BYTES:
                return join_entries(_RAW_BYTES, ids)
            case Codec.PLAIN:
                raise _no_text()

    def encode_batch(self, texts: Iterable[str | bytes]) -> list[list[int]]:
        """Return the ids of each text, unpadded. Raises as `encode` does."""
        return [self.encode(text) for text in texts]

    def decode_batch(self, batch: Iterable[Iterable[int]], errors: Errors = "replace") -> list[str]:
        """Return the text of each list of ids. Raises as `decode` does."""
        return [self.decode(ids, errors) for ids in batch]


def check(codec: Codec, n_vocab: int) -> None:
    """Raise CodecError where *codec* does not fit a checkpoint of *n_vocab* ids, naming the codecs that do."""
    sizes = codec.sizes
    if n_vocab in sizes:
        return
    if len(sizes) == 1:
        expected = f"{sizes.start}"
    elif codec is Codec.PLAIN:
        expected = f"at least {sizes.start}"
    else:
        expected = f"{sizes.start} to {sizes.stop - 1}"
    fitting = ", ".join(repr(other.value) for other in Codec if n_vocab in other.sizes)
    raise CodecError(
        f"codec {codec.value!r} expects a vocabulary of {expected} ids, but the checkpoint has {n_vocab}: "
        + (f"choose one that fits ({fitting})" if fitting else "no codec fits; check the checkpoint")
    )


def codec_for(n_vocab: int) -> Codec:
    """Return the likely codec of a checkpoint of *n_vocab* ids. A guess: who knows better should say so.

    Raises CodecError where *n_vocab* is not positive.
    """
    if n_vocab == WORLD_SIZE:
        codec = Codec.WORLD
    elif n_vocab == RAW_BYTES_SIZE:
        codec = Codec.RAW_BYTES
    elif WORLD_BYTES_MIN_SIZE <= n_vocab <= LARGEST_LIKELY_WORLD_BYTES:
        codec = Codec.WORLD_BYTES
    else:
        codec = Codec.PLAIN
    check(codec, n_vocab)
    return codec


@functools.cache
def _world() -> WorldTokenizer:
    """Return the World tokenizer: a constant, but slow to read, so only when it is needed and only once."""
    return WorldTokenizer.load()


def _no_text() -> CodecError:
    """Return the error of asking for text where there is none."""
    fitting = ", ".join(repr(codec.value) for codec in Codec if codec is not Codec.PLAIN)
    return CodecError(
        f"codec {Codec.PLAIN.value!r} has no text, only ids: work with the ids, "
        f"or bind the checkpoint to a codec that has text ({fitting})"
    )
