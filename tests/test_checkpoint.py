"""Reading checkpoints: what is right is read exactly, what is wrong is refused by name."""

import hashlib
import struct
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from reference.checkpoint import Container, load, read
from reference.formats import fla
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
    assert all(tensor.data_ptr() % tensor.itemsize == 0 for tensor in read(tmp_path / "m.bin").tensors.values())


@pytest.mark.parametrize("shape", [(32,), (1, 1, 32), (1, 32)], ids=str)
def test_safetensors(tensors, tmp_path, shape):
    """A file that the safetensors library wrote is read by BlinkDL's names, vectors flattened."""
    stored = {name: t.view(*shape) if name.endswith((".x_r", ".w0", ".k_k")) else t for name, t in tensors.items()}
    save_file(stored, tmp_path / "m.pth", {"made": "by the library"})
    checkpoint = load(tmp_path / "m.pth")
    assert checkpoint.container is Container.SAFETENSORS
    assert checkpoint.shape == SHAPE
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in tensors.items())


def test_safetensors_for_web_rwkv(tensors, tmp_path):
    """Files made for web-rwkv have their low-rank pairs transposed; they are turned round."""
    pairs = tuple(f".att.{q}{n}" for q in "wavg" for n in "12")
    turned = {name: t.T.contiguous() if name.endswith(pairs) else t for name, t in tensors.items()}
    assert turned["blocks.0.att.w1"].shape == (4, 32)
    save_file(turned, tmp_path / "m.st")
    checkpoint = load(tmp_path / "m.st")
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in tensors.items())


def test_legacy_pth(tensors, tmp_path):
    """The layout before torch 1.6 is read too, out of parameters and an ordered dictionary."""
    module = torch.nn.ParameterDict({name.replace(".", "/"): t for name, t in tensors.items()})
    stored = OrderedDict((name.replace("/", "."), t) for name, t in module.items())
    torch.save(stored, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    checkpoint = load(tmp_path / "m.pth")
    assert checkpoint.container is Container.PTH
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("legacy", [False, True])
def test_pth_of_views(tensors, tmp_path, legacy):
    """Transposed tensors and slices of one storage are read as what they show."""
    both = torch.cat([tensors["ln_out.weight"], tensors["ln_out.bias"]])
    stored = tensors | {"ln_out.weight": both[:32], "ln_out.bias": both[32:]}
    stored["head.weight"] = tensors["head.weight"].T.contiguous().T
    torch.save(stored, tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy)
    checkpoint = load(tmp_path / "m.pth")
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in tensors.items())


def test_hugging_face_folder(tensors, tmp_path):
    """A folder in Hugging Face's layout is a checkpoint; its identity changes with any of its files."""
    fla.write(tensors, tmp_path / "rwkv7-0.1b")
    checkpoint = load(tmp_path / "rwkv7-0.1b")
    assert checkpoint.container is Container.HUGGING_FACE
    assert (checkpoint.name, checkpoint.shape) == ("rwkv7-0.1b", SHAPE)
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in tensors.items())
    config = tmp_path / "rwkv7-0.1b" / "config.json"
    config.write_text(config.read_text() + " ")
    assert load(tmp_path / "rwkv7-0.1b").sha256 != checkpoint.sha256


def test_loaded_tensors_outlive_the_file(tensors, tmp_path):
    """What was loaded does not change with the file."""
    path = saved(tensors, tmp_path / "m.pth")
    checkpoint = load(path)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in tensors.items())


def test_identity_is_the_file_hash(tensors, tmp_path):
    """The sha256 is that of the file's bytes."""
    path = saved(tensors, tmp_path / "m.pth")
    stored = read(path)
    assert stored.sha256 == load(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert stored.file_bytes == path.stat().st_size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_dtypes(tensors, tmp_path, dtype):
    """What is read, rather than loaded, keeps its dtype."""
    stored = read(saved(tensors, tmp_path / "m.pth", dtype))
    assert {tensor.dtype for tensor in stored.tensors.values()} == {dtype}


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
        (
            lambda t: t.update({"ln_out.bias": torch.zeros(32, dtype=torch.int32)}),
            "ln_out.bias holds 'torch.Int",
        ),
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


def test_absent_file(tmp_path):
    """A file that is not there is named."""
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: cannot be read: No such file"):
        load(tmp_path / "nowhere.pth")
