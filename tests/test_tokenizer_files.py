"""The tokenizer's files in a Hugging Face folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tokenizer.files import END_OF_TEXT_TOKEN, write_files
from tokenizer.world import VOCABULARY_FILE, TokenizerError, find_vocabulary

REPOSITORY = Path(__file__).parents[1]


def test_files(tmp_path: Path) -> None:
    """The vocabulary is the package's, and the configuration says what transformers needs to know."""
    names = write_files(tmp_path, 65_536)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert (tmp_path / VOCABULARY_FILE).read_bytes() == find_vocabulary().read_bytes()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "RwkvTokenizer"
    assert config["padding_side"] == "left"
    assert config["add_bos_token"] is False
    assert config["added_tokens_decoder"]["0"]["content"] == END_OF_TEXT_TOKEN
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert config[name] == END_OF_TEXT_TOKEN
    assert "Assistant:" in config["chat_template"]


def test_writing_again(tmp_path: Path) -> None:
    """An export over an older one leaves the same files."""
    write_files(tmp_path, 65_536)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "tokenizer_config.json").write_text("{}")
    write_files(tmp_path, 65_536)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("n_vocab", [0, 256, 257, 65_530, 65_535, 65_537])
def test_another_vocabulary(tmp_path: Path, n_vocab: int) -> None:
    """A model with other ids gets no files: they would be wrong."""
    with pytest.raises(TokenizerError, match=rf"65536 ids, but this one has {n_vocab}: .* export it without"):
        write_files(tmp_path, n_vocab)
    assert list(tmp_path.iterdir()) == []


def test_no_folder(tmp_path: Path) -> None:
    """The folder is the exporter's to make."""
    with pytest.raises(FileNotFoundError):
        write_files(tmp_path / "absent", 65_536)


def test_writing_needs_no_transformers(tmp_path: Path) -> None:
    """The extra is for those who use the files, not for those who write them."""
    code = (
        "import sys; from pathlib import Path; from tokenizer.files import write_files; "
        f"write_files(Path({str(tmp_path)!r}), 65536); "
        "import tokenizer.codec, tokenizer.stream, tokenizer.world; "
        "print([name for name in sys.modules if name.split('.')[0] in ('rwkv', 'torch', 'transformers')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
