"""``rwkv-tpu convert`` and ``rwkv-tpu inspect``, as they are typed."""

import json
import sys

import pytest
import torch

from harness.cli import main
from reference.checkpoint import Container, load, read
from reference.formats import pth
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic

SHAPE = ModelShape(
    n_layer=2, n_embd=128, head_size=64, n_ffn=128, n_vocab=320, ranks=LoraRanks(decay=4, rate=5, value=6, gate=7)
)


@pytest.fixture
def rwkv_tpu(monkeypatch, capsys):
    """Run the command; its output, its errors."""

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["rwkv-tpu", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, errors = capsys.readouterr()
        assert (end.value.code or 0) == status, errors
        return out, errors

    return run


@pytest.fixture
def checkpoint(tmp_path):
    """A .pth file."""
    pth.write(synthetic(SHAPE).tensors, tmp_path / "m.pth")
    return tmp_path / "m.pth"


def test_convert(rwkv_tpu, checkpoint, tmp_path):
    """The goal's suffix tells the container; what changed is noted."""
    out, _ = rwkv_tpu("convert", checkpoint, tmp_path / "m.bin", "--dtype", "float16")
    assert "tensors of float32 became float16" in out
    assert "written as ggmf" in out
    out, _ = rwkv_tpu("convert", checkpoint, tmp_path / "exported")
    assert "no tokenizer files: a vocabulary of 320 ids is not the World vocabulary" in out
    assert read(tmp_path / "exported").container is Container.HUGGING_FACE
    _, errors = rwkv_tpu("convert", checkpoint, tmp_path / "m.bin", status=1)
    assert errors.startswith("error: ")
    assert "exists already" in errors
    rwkv_tpu("convert", checkpoint, tmp_path / "m.bin", "--force", "--to", "safetensors")
    assert read(tmp_path / "m.bin").container is Container.SAFETENSORS


def test_convert_with_tokenizer(rwkv_tpu, tmp_path):
    """A model of the World vocabulary gets its tokenizer's files, and the folder holds nothing else."""
    ranks = LoraRanks(decay=4, rate=5, value=0, gate=7)
    shape = ModelShape(n_layer=1, n_embd=64, head_size=64, n_ffn=64, n_vocab=65_536, ranks=ranks)
    tensors = synthetic(shape).tensors
    pth.write({name: tensor.to(torch.float16) for name, tensor in tensors.items()}, tmp_path / "m.pth")
    out, _ = rwkv_tpu("convert", tmp_path / "m.pth", tmp_path / "exported")
    assert "note: tokenizer files: " in out
    named = out.partition("tokenizer files: ")[2].splitlines()[0].split(", ")
    found = {path.name for path in (tmp_path / "exported").iterdir()}
    assert found == {"config.json", "model.safetensors", *named}
    assert len(named) >= 2
    assert load(tmp_path / "exported").shape == shape


def test_inspect(rwkv_tpu, checkpoint):
    """Sizes, ranks, codec, dtypes, ranges and doubts are shown; doubts are no failure."""
    tensors = dict(synthetic(SHAPE).tensors) | {"ln_out.weight": torch.ones(128)}
    pth.write(tensors, checkpoint)
    out, _ = rwkv_tpu("inspect", checkpoint)
    for fact in (
        read(checkpoint).sha256,
        "128 = 2 heads of 64",
        "decay 4, rate 5, value 6, gate 7",
        "320 ids",
        "world-bytes (by the vocabulary size)",
        "tensors of float32",
        "att.receptance.weight",
        "warning: one value throughout, as before training: ln_out.weight",
    ):
        assert fact in out


def test_inspect_as_json(rwkv_tpu, checkpoint):
    """The same as JSON: everything that is shown, in full precision."""
    out, _ = rwkv_tpu("inspect", checkpoint, "--json")
    found = json.loads(out)
    assert found["path"] == str(checkpoint)
    assert found["container"] == "pth"
    assert found["codec"] == "world-bytes"
    assert found["shape"]["ranks"] == {"decay": 4, "rate": 5, "value": 6, "gate": 7}
    assert found["warnings"] == []
    (values,) = (values for values in found["values"] if values["kind"] == "emb.weight")
    assert values["maximum"] == float(synthetic(SHAPE).tensors["emb.weight"].max())


def test_inspect_known_file(rwkv_tpu, shared_data):
    """A file that the project knows has the codec that is written down for it."""
    path = shared_data / "reverse_l2_x070" / "reverse_x070_L2_D256_h64.pth"
    out, _ = rwkv_tpu("inspect", path)
    assert "ids (known file)" in out
    assert "fits no vocabulary" not in out


def test_inspect_unknown_vocabulary(rwkv_tpu, tmp_path):
    """A vocabulary that no codec with text fits is a doubt."""
    shape = ModelShape(n_layer=1, n_embd=64, head_size=64, n_ffn=64, n_vocab=50_277, ranks=SHAPE.ranks)
    pth.write(synthetic(shape).tensors, tmp_path / "m.pth")
    out, _ = rwkv_tpu("inspect", tmp_path / "m.pth")
    assert "warning: a vocabulary of 50277 ids fits no vocabulary with text" in out


def test_inspect_refuses(rwkv_tpu, tmp_path):
    """A file that is no checkpoint is an error, and status 1."""
    (tmp_path / "m.pth").write_text("text" * 100)
    _, errors = rwkv_tpu("inspect", tmp_path / "m.pth", status=1)
    assert errors.startswith(f"error: {tmp_path / 'm.pth'}: begins as no checkpoint does")


@pytest.mark.parametrize("command", ["convert", "inspect", "toolchain"])
def test_help(rwkv_tpu, command):
    """Each command explains itself, also when it is given nothing."""
    out, _ = rwkv_tpu(command, "--help")
    assert "Usage: rwkv-tpu" in out
    bare, errors = rwkv_tpu(command, status=2)
    assert "Usage: rwkv-tpu" in bare + errors
