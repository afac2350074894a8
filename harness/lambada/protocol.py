"""What a target is asked about a passage, as in BlinkDL's demo of RWKV-7."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.targets.base import Text
    from tokenizer.codec import Codec

PROTOCOL = 1
"""Raise it when anything here changes: results of another protocol are not reused."""

START = 0
"""The token before every text: what the models were trained to start after."""


def to_text(passage: str, codec: Codec) -> Text:
    """Split a passage at its last space: token 0 and what is before, then the space and the last word.

    The two are encoded apart, so that the space always belongs to the word.

    Raises:
        CodecError: the codec's ids have no text.
        ValueError: there is no space in the passage.
    """
    context, space, word = passage.rpartition(" ")
    if not space:
        raise ValueError(f"a passage needs a space before its last word, but this has none: {passage[:80]!r}")
    return [START, *codec.encode(context)], codec.encode(space + word)
