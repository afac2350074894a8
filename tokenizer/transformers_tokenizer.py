"""The World tokenizer as a class that works where the package ``transformers`` expects a tokenizer.

That package is an extra of this project; nothing else here needs it.
"""

from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal

try:
    from transformers import PreTrainedTokenizer
except ModuleNotFoundError as error:
    raise ImportError(
        "this module needs the package transformers, which is not installed: in this project's folder, run "
        "pip install --editable '.[transformers]'"
    ) from error

from tokenizer.files import CHAT_TEMPLATE, END_OF_TEXT_TOKEN, SPECIAL_TOKENS
from tokenizer.world import END_OF_TEXT, VOCABULARY_FILE, TokenizerError, WorldTokenizer, write_vocabulary


class RwkvTokenizer(PreTrainedTokenizer):
    """Text to World ids and back, by the ways of ``transformers``: batches, tensors, special tokens, chats.

    The ids are those of `WorldTokenizer`, save that the text of a special token, such as
    ``<|rwkv_tokenizer_end_of_text|>`` for id 0, becomes that token; ``split_special_tokens=True`` prevents it. Nothing
    is added to a text unless *add_bos_token* is set, which begins each with id 0.

    A batch is padded on the left, so that every text ends where generation goes on. Padding is the end of text, and a
    recurrent model must never see it as if it were text: it would change the state for good. Whoever takes a padded
    batch must honour ``attention_mask``, or run each text by itself.

    `from_pretrained` and `save_pretrained` work with local folders as `tokenizer.files.write_files` makes them, and
    ``AutoTokenizer.register(config_class, RwkvTokenizer)`` lets ``AutoTokenizer`` find this class for such a folder.

    A token's str is its text. Bytes that are no valid UTF-8 stand in it as Python writes them with
    ``errors="surrogateescape"``; a text to encode may have such bytes too. `decode` shows them as U+FFFD, fails on them
    or writes them that way again, as *errors* says; with the last, any bytes come back.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": VOCABULARY_FILE}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | PathLike[str] | None = None,
        *,
        add_bos_token: bool | None = None,
        errors: Literal["replace", "strict", "surrogateescape"] = "replace",
        **kwargs: Any,
    ) -> None:
        """Read the vocabulary from *vocab_file*, by default from the installed package ``rwkv``.

        The other arguments are those of every tokenizer of ``transformers``. Raises as `WorldTokenizer.load` does, and
        TokenizerError where `from_pretrained` found no vocabulary in its folder.
        """
        if vocab_file is None and "name_or_path" in kwargs:
            raise TokenizerError(
                f"expected the World vocabulary, {VOCABULARY_FILE}, in {kwargs['name_or_path']}, but it is not there: "
                "check that this is an RWKV World model"
            )
        self._world = WorldTokenizer.load(None if vocab_file is None else Path(vocab_file))
        self._texts = {i: entry.decode(errors="surrogateescape") for i, entry in self._world.vocabulary.items()}
        self._texts[END_OF_TEXT] = END_OF_TEXT_TOKEN
        self._vocabulary = {text: i for i, text in self._texts.items()}
        self.errors = errors
        for name in SPECIAL_TOKENS:
            kwargs.setdefault(name, END_OF_TEXT_TOKEN)
        kwargs.setdefault("chat_template", CHAT_TEMPLATE)
        kwargs.setdefault("special_tokens_pattern", "none")
        if add_bos_token is not None:  # over what an earlier tokenizer was saved with
            kwargs["special_tokens_pattern"] = "bos" if add_bos_token else "none"
        super().__init__(errors=errors, **kwargs)
        # These are saved with the tokenizer; transformers leaves this one out.
        self.init_kwargs["special_tokens_pattern"] = self.special_tokens_pattern

    @property
    def vocab_size(self) -> int:
        """The ids of the vocabulary, id 0 included: 65,530. A World checkpoint has six more rows, for added tokens."""
        return len(self._vocabulary)

    def get_vocab(self) -> dict[str, int]:
        """Return all tokens, added ones included, each with its id."""
        return {**self._vocabulary, **self._added_tokens_encoder}

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of *tokens*; several of them may make one character."""
        return "".join(tokens).encode(errors="surrogateescape").decode(errors=self.errors)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary into the folder *save_directory* and return the file's path."""
        name = f"{filename_prefix}-{VOCABULARY_FILE}" if filename_prefix else VOCABULARY_FILE
        path = Path(save_directory) / name
        write_vocabulary(path, self._world.vocabulary)
        return (str(path),)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        """Return the tokens of *text*, which has no added tokens in it."""
        return [self._texts[i] for i in self._world.encode_bytes(text.encode(errors="surrogateescape"))]

    def _convert_token_to_id(self, token: str) -> int | None:
        """Return the id of *token*, or that of the unknown token."""
        unknown: int | None = self._added_tokens_encoder.get(str(self.unk_token))
        return self._vocabulary.get(token, unknown)

    def _convert_id_to_token(self, index: int) -> str:
        """Return the token of an id. Raises TokenizerError where there is none."""
        try:
            return self._texts[index]
        except KeyError:
            raise TokenizerError(
                f"expected an id from 0 to {len(self._texts) - 1} or an added token's, found {index}: check that this "
                "tokenizer and the model belong together, and that labels of -100 are taken out before decoding"
            ) from None
