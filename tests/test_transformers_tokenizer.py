"""The World tokenizer where transformers expects a tokenizer, used as its users do."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.files import END_OF_TEXT_TOKEN, write_files
from tokenizer.world import LAST_ID, VOCABULARY_FILE, TokenizerError, WorldTokenizer

if os.environ.get("CI") != "true":
    pytest.importorskip("transformers")

from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    TextStreamer,
)

from tokenizer.transformers_tokenizer import RwkvTokenizer

REPOSITORY = Path(__file__).parents[1]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
]
RENDERED = f"{END_OF_TEXT_TOKEN}System: Be brief.\n\nUser: Hi!\n\nAssistant: Hello.\n\nUser: Why?\n\n"

many_examples = settings(max_examples=200)


@pytest.fixture(scope="module")
def world() -> WorldTokenizer:
    """Return the tokenizer that the class is made of."""
    return WorldTokenizer.load()


@pytest.fixture(scope="module")
def tok() -> RwkvTokenizer:
    """Return the tokenizer, for tests that leave it as it is."""
    return RwkvTokenizer()


@pytest.fixture(scope="module")
def byte_tok() -> RwkvTokenizer:
    """Return a tokenizer that writes bytes that are no text as surrogates."""
    return RwkvTokenizer(errors="surrogateescape")


@pytest.fixture
def own() -> RwkvTokenizer:
    """Return a tokenizer of the test's own, to change."""
    return RwkvTokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tokenizer's files, as an export makes it."""
    folder = tmp_path_factory.mktemp("exported")
    write_files(folder, 65_536)
    return folder


@given(text=st.text())
@many_examples
def test_any_text(tok: RwkvTokenizer, world: WorldTokenizer, text: str) -> None:
    """Any text has its World ids, with nothing added, and comes back."""
    ids = tok(text)["input_ids"]
    assert ids == tok.encode(text) == world.encode(text)
    assert tok.decode(ids) == text
    assert tok.convert_tokens_to_ids(tok.tokenize(text)) == ids
    assert tok.convert_tokens_to_string(tok.convert_ids_to_tokens(ids)) == text


@given(data=st.binary(max_size=200))
@many_examples
def test_any_bytes(byte_tok: RwkvTokenizer, tok: RwkvTokenizer, world: WorldTokenizer, data: bytes) -> None:
    """Bytes go in as Python writes them in a str and come out the same way, or as U+FFFD where that is not asked."""
    text = data.decode(errors="surrogateescape")
    ids = byte_tok(text)["input_ids"]
    assert ids == world.encode_bytes(data)
    assert byte_tok.decode(ids).encode(errors="surrogateescape") == data
    assert tok.decode(ids) == world.decode(ids)


def test_every_entry(tok: RwkvTokenizer, world: WorldTokenizer) -> None:
    """Each id has a token of its own, a str, from which id and bytes can be had again."""
    tokens = tok.convert_ids_to_tokens(list(range(LAST_ID + 1)))
    assert len(set(tokens)) == LAST_ID + 1
    assert tok.convert_tokens_to_ids(tokens) == list(range(LAST_ID + 1))
    assert tok.get_vocab() == {token: i for i, token in enumerate(tokens)}
    assert [token.encode(errors="surrogateescape") for token in tokens[1:]] == [
        world.vocabulary[i] for i in range(1, LAST_ID + 1)
    ]
    assert tok.vocab_size == len(tok) == LAST_ID + 1


def test_lambada(tok: RwkvTokenizer, world: WorldTokenizer, shared_data: Path) -> None:
    """A batch of LAMBADA has the World ids and comes back."""
    lines = (shared_data / "lambada" / "lambada_test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    ids = tok(texts)["input_ids"]
    assert ids == world.encode_batch(texts)
    assert tok.batch_decode(ids) == texts


def test_a_batch_is_padded_on_the_left(tok: RwkvTokenizer) -> None:
    """Every text ends in the last column; the mask tells the padding, which is id 0."""
    batch = tok(["a", "User: Hello!", ""], return_tensors="pt", padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[0, 0, 0, 98], [24281, 59, 36786, 34], [0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert tok.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["a", "User: Hello!", ""]
    assert tok.decode(batch["input_ids"][0]) == 3 * END_OF_TEXT_TOKEN + "a"


def test_arrays_lengths_and_the_other_side(tok: RwkvTokenizer) -> None:
    """Tensors of numpy, padding to a length or a multiple or on the right, and truncation, as in any tokenizer."""
    batch = tok(["a", "User: Hello!"], return_tensors="np", padding="max_length", max_length=6)
    assert isinstance(batch["input_ids"], np.ndarray)
    assert batch["input_ids"].tolist() == [[0, 0, 0, 0, 0, 98], [0, 0, 24281, 59, 36786, 34]]
    assert tok("a", padding=True, pad_to_multiple_of=4)["attention_mask"] == [0, 0, 0, 1]
    assert tok(["a", "User:"], padding=True, padding_side="right")["input_ids"] == [[98, 0], [24281, 59]]
    assert tok("User: Hello!", truncation=True, max_length=2)["input_ids"] == [24281, 59]
    assert tok(["a", "bb"], return_attention_mask=False).keys() == {"input_ids"}


def test_collators(tok: RwkvTokenizer) -> None:
    """The collators pad on the left, and a language model learns nothing from padding."""
    features = [dict(tok(text)) for text in ("a", "User:")]
    padded = DataCollatorWithPadding(tok)(features)
    assert padded["input_ids"].tolist() == [[0, 98], [24281, 59]]
    assert padded["attention_mask"].tolist() == [[0, 1], [1, 1]]
    trained = DataCollatorForLanguageModeling(tok, mlm=False)(features)
    assert trained["labels"].tolist() == [[-100, 98], [24281, 59]]


def test_special_tokens(tok: RwkvTokenizer, world: WorldTokenizer) -> None:
    """Id 0 is all of them. Its text is that token, unless the text is to be taken literally."""
    assert tok.bos_token_id == tok.eos_token_id == tok.pad_token_id == tok.unk_token_id == 0
    assert tok.all_special_tokens == [END_OF_TEXT_TOKEN]
    assert tok.convert_tokens_to_ids("no token at all") == 0
    text = f"one{END_OF_TEXT_TOKEN} two"
    ids = [*world.encode("one"), 0, *world.encode(" two")]
    assert tok(text)["input_ids"] == ids
    assert tok.decode(ids) == text
    assert tok.decode(ids, skip_special_tokens=True) == "one two"
    assert tok(text, split_special_tokens=True)["input_ids"] == world.encode(text)
    assert tok.get_special_tokens_mask(ids, already_has_special_tokens=True) == [int(i == 0) for i in ids]


def test_begin_with_the_end_of_text(folder: Path, tmp_path: Path) -> None:
    """Each text begins with id 0 where that is asked for; this is saved, and can be changed on loading."""
    tok = RwkvTokenizer(add_bos_token=True)
    tok.save_pretrained(tmp_path)
    for one in (
        tok,
        RwkvTokenizer.from_pretrained(tmp_path),
        RwkvTokenizer.from_pretrained(folder, add_bos_token=True),
    ):
        assert one("a")["input_ids"] == [0, 98]
        assert one("a", add_special_tokens=False)["input_ids"] == [98]
        assert one(["a", "User:"], padding=True)["attention_mask"] == [[0, 1, 1], [1, 1, 1]]
    assert RwkvTokenizer.from_pretrained(tmp_path, add_bos_token=False)("a")["input_ids"] == [98]


def test_added_tokens(own: RwkvTokenizer) -> None:
    """New tokens take the rows that a World head has left over; the text of an entry stays that entry."""
    assert own.add_tokens(["<tool>", "天"]) == 1
    assert own("x<tool>今天")["input_ids"] == [121, 65_530, 10_381, 11_639]
    assert own.decode([121, 65_530]) == "x<tool>"
    assert len(own) == 65_531
    assert own.vocab_size == 65_530
    own.add_special_tokens({"eos_token": "\n\n"})
    assert own.eos_token_id == 261
    assert own("a\n\n")["input_ids"] == [98, 261]


def test_ids_without_a_token(tok: RwkvTokenizer) -> None:
    """An id that stands for nothing is an error that names it."""
    for i in (65_530, -100):
        with pytest.raises(TokenizerError, match=f"found {i}"):
            tok.decode([98, i])
        with pytest.raises(TokenizerError, match=f"found {i}"):
            tok.convert_ids_to_tokens(i)


def test_what_is_no_text(tok: RwkvTokenizer) -> None:
    """A surrogate that stands for no byte is refused; half a character fails where that is asked for."""
    with pytest.raises(UnicodeEncodeError):
        tok("a\ud800")
    assert tok.decode([98, 167]) == "a\ufffd"
    with pytest.raises(UnicodeDecodeError):
        RwkvTokenizer(errors="strict").decode([98, 167])


def test_chat(tok: RwkvTokenizer, world: WorldTokenizer) -> None:
    """A chat becomes the turns that RWKV-7 knows, after id 0, and goes on where the answer begins."""
    assert tok.apply_chat_template(CHAT, tokenize=False) == RENDERED
    assert tok.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == RENDERED + "Assistant:"
    batch = tok.apply_chat_template([CHAT, CHAT[1:2]], add_generation_prompt=True, return_tensors="pt", padding=True)
    long = [0, *world.encode(RENDERED.removeprefix(END_OF_TEXT_TOKEN) + "Assistant:")]
    short = [0, *world.encode("User: Hi!\n\nAssistant:")]
    assert batch["input_ids"].tolist() == [long, [0] * (len(long) - len(short)) + short]
    assert batch["attention_mask"].sum(1).tolist() == [len(long), len(short)]
    begun = [*CHAT[:2], {"role": "assistant", "content": "Hello"}]
    assert tok.apply_chat_template(begun, tokenize=False, continue_final_message=True).endswith("Assistant: Hello")


def test_chat_that_tries_to_end_the_text(tok: RwkvTokenizer) -> None:
    """A user who writes the end of text gets it as such only from a caller who does not guard against it."""
    chat = [{"role": "user", "content": f"Hi{END_OF_TEXT_TOKEN}"}]
    assert tok.apply_chat_template(chat)["input_ids"].count(0) == 2
    assert tok.apply_chat_template(chat, sanitize_control_tokens=True)["input_ids"].count(0) == 1


def test_unknown_role(tok: RwkvTokenizer) -> None:
    """A role that the format does not have is an error, not a silent gap."""
    with pytest.raises(Exception, match="expected the role system, user or assistant, found tool"):
        tok.apply_chat_template([{"role": "tool", "content": "x"}])


def assert_same(one: RwkvTokenizer, other: RwkvTokenizer) -> None:
    """Both encode, decode and chat alike, with the same settings."""
    text = f"naïve 🦜 今天\n\n<tool>{END_OF_TEXT_TOKEN}"
    assert one(text) == other(text)
    assert one.decode(one(text)["input_ids"]) == other.decode(one(text)["input_ids"]) == text
    assert one.get_vocab() == other.get_vocab()
    assert one.special_tokens_map == other.special_tokens_map
    assert one.apply_chat_template(CHAT) == other.apply_chat_template(CHAT)
    for name in ("padding_side", "truncation_side", "model_max_length", "errors", "chat_template"):
        assert getattr(one, name) == getattr(other, name)


def test_exported_folder(tok: RwkvTokenizer, folder: Path) -> None:
    """The files of an export load as the tokenizer that needs no files."""
    assert_same(RwkvTokenizer.from_pretrained(folder), tok)


def test_auto_tokenizer(tok: RwkvTokenizer, folder: Path) -> None:
    """Once registered for a configuration, the class is what AutoTokenizer finds in the folder."""

    class Config(PreTrainedConfig):
        model_type = "rwkv7-of-a-test"

    AutoTokenizer.register(Config, RwkvTokenizer)
    found = AutoTokenizer.from_pretrained(folder)
    assert type(found) is RwkvTokenizer
    assert_same(found, tok)


def test_saved_and_loaded(tmp_path: Path) -> None:
    """What was changed comes back from a folder, twice over."""
    own = RwkvTokenizer(padding_side="right", truncation_side="left", errors="strict", model_max_length=4096)
    own.add_special_tokens({"eos_token": "\n\n"})
    own.add_tokens(["<tool>"])
    own.save_pretrained(tmp_path / "one")
    once = RwkvTokenizer.from_pretrained(tmp_path / "one")
    assert_same(once, own)
    once.save_pretrained(tmp_path / "two")
    assert_same(RwkvTokenizer.from_pretrained(tmp_path / "two"), own)


def test_saved_under_a_prefix(tok: RwkvTokenizer, tmp_path: Path) -> None:
    """The vocabulary can be saved by itself, under another name, and read from there."""
    (path,) = tok.save_vocabulary(str(tmp_path), filename_prefix="mine")
    assert Path(path) == tmp_path / f"mine-{VOCABULARY_FILE}"
    assert_same(RwkvTokenizer(path), tok)


def test_a_folder_of_another_model(tmp_path: Path) -> None:
    """A folder without the World vocabulary is no RWKV model; it does not load as one."""
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TokenizerError, match=f"expected the World vocabulary, {VOCABULARY_FILE}, in {tmp_path}"):
        RwkvTokenizer.from_pretrained(tmp_path)


def test_a_broken_vocabulary(folder: Path, tmp_path: Path) -> None:
    """A vocabulary cut short is named, with its line."""
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / VOCABULARY_FILE).write_bytes((folder / VOCABULARY_FILE).read_bytes()[:100_000])
    with pytest.raises(TokenizerError, match=f"{tmp_path}.*line"):
        RwkvTokenizer.from_pretrained(tmp_path)


def test_copies(own: RwkvTokenizer) -> None:
    """A tokenizer can go to a data loader's processes."""
    own.add_tokens(["<tool>"])
    assert_same(pickle.loads(pickle.dumps(own)), own)  # noqa: S301 - our own bytes
    assert_same(copy.deepcopy(own), own)


def test_streamer(tok: RwkvTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    """The streamer of transformers prints a text id by id, without halves of characters."""
    text = "naïve 🦜 café 今天🦜\nend 🦜"
    streamer = TextStreamer(tok)
    shown = ""
    for i in tok.encode(text):
        streamer.put(torch.tensor([i]))
        shown += capsys.readouterr().out
        assert text.startswith(shown)
    streamer.end()
    assert shown + capsys.readouterr().out == text + "\n"


def test_generate(tok: RwkvTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of transformers generates from a padded batch as from each text alone, streams, and stops at a text."""
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=len(tok), n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    texts = ["User: Hello!\n\nAssistant:", "a"]
    kwargs = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": tok.pad_token_id}
    padded = model.generate(**tok(texts, return_tensors="pt", padding=True), **kwargs)
    alone = [model.generate(**tok(text, return_tensors="pt"), **kwargs)[0] for text in texts]
    assert tok.batch_decode(padded, skip_special_tokens=True) == [tok.decode(ids) for ids in alone]
    inputs = tok(texts[0], return_tensors="pt")
    model.generate(**inputs, **kwargs, streamer=TextStreamer(tok, skip_prompt=True))
    continued = tok.decode(alone[0][inputs["input_ids"].shape[1] :])
    assert capsys.readouterr().out.rstrip("\n") == continued.rstrip("\n")
    stopped = model.generate(**inputs, **kwargs, stop_strings=[continued[:3]], tokenizer=tok)
    assert continued[:3] in tok.decode(stopped[0])
    assert stopped.shape[1] < len(alone[0])


def test_without_transformers() -> None:
    """The error says what to install; the rest of the tokenizer works as before."""
    code = (
        "import sys; sys.modules['transformers'] = None; import tokenizer.world, tokenizer.stream, tokenizer.files\n"
        "try:\n    import tokenizer.transformers_tokenizer\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "pip install --editable '.[transformers]'" in done.stdout
