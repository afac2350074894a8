"""The files by which a Hugging Face folder says that its model speaks the World vocabulary."""

import json
import shutil
from pathlib import Path

from tokenizer.codec import WORLD_SIZE
from tokenizer.world import END_OF_TEXT, VOCABULARY_FILE, TokenizerError, find_vocabulary

CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_CLASS = "RwkvTokenizer"

# The name of id 0 in the RWKV folders on Hugging Face.
END_OF_TEXT_TOKEN = "<|rwkv_tokenizer_end_of_text|>"  # noqa: S105 - a token, but no secret

# Those folders let a turn end the text ("\n\n" as eos), which also ends every answer of two paragraphs. Here the
# end of the text does, as in training.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")

# The format that RWKV-7 is trained on; a blank line separates turns. Nothing follows "Assistant:", because the
# answer's first token begins with the space.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] in ('system', 'user', 'assistant') %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] + '\n\n' }}"
    "{% else %}"
    "{{ raise_exception('expected the role system, user or assistant, found ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def write_files(folder: Path, n_vocab: int) -> list[str]:
    """Write vocabulary and configuration into *folder*, for a model of *n_vocab* ids, and return the files' names.

    `tokenizer.transformers_tokenizer.RwkvTokenizer.from_pretrained` reads them; to write them needs no transformers.

    Raises TokenizerError where *n_vocab* is not the World vocabulary's or the package ``rwkv`` is missing, and
    OSError where *folder* is no folder that can be written to.
    """
    if n_vocab != WORLD_SIZE:
        raise TokenizerError(
            f"expected a model with the World vocabulary, {WORLD_SIZE} ids, but this one has {n_vocab}: there are no "
            "tokenizer files for it, export it without them"
        )
    shutil.copyfile(find_vocabulary(), folder / VOCABULARY_FILE)
    text = json.dumps(_config(), indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    return [VOCABULARY_FILE, CONFIG_FILE]


def _config() -> dict[str, object]:
    """Return the configuration, with everything that other readers of such folders would have to guess."""
    end_of_text = {
        "content": END_OF_TEXT_TOKEN,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    return {
        "tokenizer_class": TOKENIZER_CLASS,
        "added_tokens_decoder": {str(END_OF_TEXT): end_of_text},
        **dict.fromkeys(SPECIAL_TOKENS, END_OF_TEXT_TOKEN),
        "add_bos_token": False,
        "padding_side": "left",
        "model_max_length": int(1e30),  # how transformers writes "no limit"
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
