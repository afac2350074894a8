"""Text from ids as they come: a character is shown once its last byte is there."""

import codecs

from tokenizer.codec import Codec
from tokenizer.world import Errors


class StreamDecoder:
    """Decodes ids piece by piece; what the pieces give is together what `Codec.decode` gives of all the ids.

    An id may end inside a character: its bytes are held back until the character is whole, or cannot become so.
    """

    def __init__(self, codec: Codec, errors: Errors = "replace") -> None:
        """Decode ids of *codec*. Raises CodecError where they have no text.

        Bytes that are no valid UTF-8 show as U+FFFD, or raise UnicodeDecodeError where *errors* is "strict".
        """
        codec.decode_bytes([])  # an error, and the time to read a vocabulary, belong here and not to the first id
        self._codec = codec
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)

    def feed(self, *ids: int) -> str:
        """Return the text that *ids* complete, which may be none.

        Raises TokenizerError where an id stands for nothing, and UnicodeDecodeError where *errors* is "strict"; the
        stream is then as it was before the call.
        """
        return self._utf8.decode(self._codec.decode_bytes(ids))

    def finish(self) -> str:
        """Return what is left of an unfinished character, as U+FFFD, and be ready for another stream.

        Raises UnicodeDecodeError where something is left and *errors* is "strict".
        """
        try:
            return self._utf8.decode(b"", final=True)
        finally:
            self._utf8.reset()
