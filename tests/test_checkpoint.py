"""Reading checkpoints: what is right is read exactly, what is wrong is refused by name."""

import pickle
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.checkpoint import Container, load
from reference.shape import CheckpointError, LoraRanks, ModelShape
from reference.synthetic import synthetic

SHAPE = ModelShape(
    n_layer=2, n_embd=32, head_size=16, n_ffn=64, n_vocab=10, ranks=LoraRanks(decay=4, rate=5, value=6, gate=7)
)


@pytest.fixture
def tensors():
    """A small checkpoint's tensors, to be spoilt."""
    return dict(synthetic(SHAPE).tensors)


def saved(tensors, path, dtype=torch.float32):
    """Write a .pth as BlinkDL's releases are: vectors as [1, 1, C]."""
    vectors = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0", "k_k", "k_a")
    stored = {
        name: (t.view(1, 1, -1) if name.rpartition(".")[2] in vectors else t).to(dtype) for name, t in tensors.items()
    }
    torch.save(stored, path)
    return path


def write_ggmf(tensors, path, dtype=0):
    """Write rwkv.cpp's container: merged token-shift vectors, transposed LoRA matrices."""
    records = {}
    for name, tensor in tensors.items():
        if ".att.x_" in name:
            if name.endswith("x_r"):
                merged = torch.stack([tensors[name[:-1] + q] for q in "rwkvag"])
                records[name.replace("x_r", "x_rwkvag")] = merged[:, None]
        elif name[-3:] in {f".{q}{n}" for q in "wavg" for n in "12"}:
            records[name] = tensor.T.contiguous()
        elif (name[-2:] in {"_k", "_a"} and "r_k" not in name) or name[-3:] in {".w0", ".a0", ".v0"}:
            records[name] = tensor.view(-1, 1, 1)
        else:
            records[name] = tensor
    with path.open("wb") as file:
        file.write(struct.pack("<6I", 0x67676D66, 101, 10, 32, 2, dtype))
        for name, tensor in records.items():
            file.write(struct.pack("<3I", tensor.dim(), len(name), dtype))
            file.write(struct.pack(f"<{tensor.dim()}I", *reversed(tensor.shape)) + name.encode())
            file.write(tensor.numpy().astype("<f2" if dtype else "<f4").tobytes())
    return path


def test_pth(tensors, tmp_path):
    """A .pth file gives its tensors, in canonical shapes, and its sizes."""
    checkpoint = load(saved(tensors, tmp_path / "m.pth"))
    assert checkpoint.shape == SHAPE
    assert checkpoint.container is Container.PTH
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pth_dtypes(tensors, tmp_path, dtype):
    """Half precision and double are read as float32."""
    checkpoint = load(saved(tensors, tmp_path / "m.pth", dtype))
    assert all(torch.equal(t, tensors[name].to(dtype).float()) for name, t in checkpoint.tensors.items())


def test_pth_unused_value_residual_of_block_0(tensors, tmp_path):
    """Releases that carry v0, v1, v2 in block 0 load; the tensors mean nothing there."""
    for n, size in enumerate([(32,), (32, 6), (6, 32)]):
        tensors[f"blocks.0.att.v{n}"] = torch.ones(size)
    assert "blocks.0.att.v0" not in load(saved(tensors, tmp_path / "m.pth")).tensors


@pytest.mark.parametrize("dtype", [0, 1], ids=["float32", "float16"])
def test_ggmf(tensors, tmp_path, dtype):
    """The other container gives the same tensors, in the same names and orientation."""
    checkpoint = load(write_ggmf(tensors, tmp_path / "m.bin", dtype))
    assert checkpoint.container is Container.GGMF
    assert checkpoint.shape == SHAPE
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensors[name], tensor.half().float() if dtype else tensor), name


class Hostile:
    """Runs code when unpickled by a reader that trusts."""

    def __reduce__(self):
        """Ask the reader to call print."""
        return print, ("code ran",)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("blocks.1.att.v0"), r"no tensor 'blocks.1.att.v0'.*\(32,\)"),
        (lambda t: t.pop("emb.weight"), "no tensor 'emb.weight'"),
        (lambda t: t.pop("blocks.0.att.r_k"), "no tensor 'blocks.0.att.r_k'"),
        (lambda t: t.update({"head.weight": torch.zeros(10, 31)}), r"head.weight has shape \(10, 31\).*\(10, 32\)"),
        (lambda t: t.update({"blocks.0.att.r_k": torch.zeros(32)}), "r_k has shape .* 2 axes"),
        (lambda t: t.update({"blocks.0.att.time_decay": torch.zeros(32)}), "does not have: blocks.0.att.time_decay"),
        (lambda t: t.update({"blocks.3.ln1.weight": torch.zeros(32)}), "without a gap"),
        (lambda t: t.update({"ln_out.bias": torch.full((32,), float("nan"))}), "ln_out.bias holds NaN"),
        (lambda t: t.update({"ln_out.bias": torch.zeros(32, dtype=torch.int32)}), "ln_out.bias holds torch.int32"),
    ],
)
def test_wrong_tensors(tensors, tmp_path, spoil, message):
    """A checkpoint with something wrong is refused with file, tensor and expectation."""
    path = tmp_path / "m.pth"
    spoil(tensors)
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 not really a zip", b"\x80\x04.", b"fmgg", pickle.dumps(Hostile()), b"{}" * 100],
    ids=["empty", "zip", "pickle", "bare magic", "hostile", "text"],
)
def test_other_files(tmp_path, content, capfd):
    """What is no checkpoint is refused, and no code in it runs."""
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.pth"):
        load(path)
    assert "code ran" not in capfd.readouterr().out


def test_absent_file(tmp_path):
    """A file that is not there is named."""
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: cannot be read: No such file"):
        load(tmp_path / "nowhere.pth")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_ggmf(tmp_path_factory, data):
    """Cut short or altered in its structure, the container is refused or read whole: nothing else happens."""
    path = tmp_path_factory.mktemp("ggmf") / "m.bin"
    write_ggmf(dict(synthetic(SHAPE).tensors), path)
    whole = path.read_bytes()
    cut = data.draw(st.integers(4, len(whole) - 1))
    path.write_bytes(whole[:cut])
    with pytest.raises(CheckpointError):
        load(path)
