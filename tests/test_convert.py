"""Converting between containers: exact, whole or not at all, and as each container's own users expect it."""

import itertools
import json
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reference.checkpoint import Container, load, read
from reference.convert import SUFFIXES, convert
from reference.formats import pth
from reference.shape import CheckpointError, LoraRanks, ModelShape
from reference.synthetic import synthetic

ROOT = Path(__file__).parent.parent
SHAPE = ModelShape(
    n_layer=2, n_embd=32, head_size=16, n_ffn=80, n_vocab=10, ranks=LoraRanks(decay=4, rate=5, value=6, gate=7)
)
NAMES = {
    Container.PTH: "m.pth",
    Container.SAFETENSORS: "m.safetensors",
    Container.GGMF: "m.bin",
    Container.HUGGING_FACE: "m",
}
PAIRS = list(itertools.permutations(NAMES, 2))
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def bits(tensors):
    """Dtype, shape and bytes of each tensor."""
    return {n: (t.dtype, t.shape, t.contiguous().view(torch.uint8).numpy().tobytes()) for n, t in tensors.items()}


def checkpoint(path, dtype=torch.float32, **more):
    """A .pth file to convert."""
    tensors = {name: tensor.to(dtype) for name, tensor in synthetic(SHAPE).tensors.items()}
    pth.write(tensors | more, path)
    return path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda c: c.value)
def test_round_trip(tmp_path, first, second, dtype):
    """From each container to each other and back, every value is the same, and every dtype that both can hold."""
    one, two, back = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    for folder in (one, two, back):
        folder.mkdir()
    convert(checkpoint(tmp_path / "s.pth", dtype), one / NAMES[first])
    convert(one / NAMES[first], two / NAMES[second])
    convert(two / NAMES[second], back / NAMES[first])
    was, there, now = read(one / NAMES[first]), read(two / NAMES[second]), read(back / NAMES[first])
    assert (was.container, there.container) == (first, second)
    assert was.shape == there.shape == now.shape == SHAPE
    for name, tensor in was.tensors.items():
        assert torch.equal(there.tensors[name].double(), tensor.double()), name
    if Container.GGMF not in {first, second} or dtype == torch.float32:
        assert bits(was.tensors) == bits(there.tensors) == bits(now.tensors)
        assert was.sha256 == now.sha256
    else:
        assert bits({n: t.double() for n, t in was.tensors.items()}) == bits(
            {n: t.double() for n, t in now.tensors.items()}
        )


@pytest.mark.parametrize("container", [c for c in NAMES if c is not Container.GGMF], ids=lambda c: c.value)
def test_float64_round_trip(tmp_path, container):
    """Doubles stay doubles where the container has them."""
    source = checkpoint(tmp_path / "s.pth", torch.float64)
    convert(source, tmp_path / NAMES[container])
    assert bits(read(tmp_path / NAMES[container]).tensors) == bits(read(source).tensors)


def test_ggmf_dtypes(tmp_path):
    """The ggmf container gets float16 matrices and float32 vectors, bfloat16 widened, and the caller is told."""
    done = convert(checkpoint(tmp_path / "b.pth", torch.bfloat16), tmp_path / "b.bin")
    assert done.notices == (f"{len(SHAPE.tensors())} tensors of bfloat16 became float32",)
    done = convert(checkpoint(tmp_path / "h.pth", torch.float16), tmp_path / "h.bin")
    stored = read(tmp_path / "h.bin").tensors
    assert stored["emb.weight"].dtype == stored["blocks.0.att.w1"].dtype == torch.float16
    assert stored["ln_out.bias"].dtype == stored["blocks.0.att.x_r"].dtype == torch.float32
    assert "became float32" in done.notices[0]
    with pytest.raises(CheckpointError, match="holds float64, which ggmf does not have; ask for float32"):
        convert(checkpoint(tmp_path / "d.pth", torch.float64), tmp_path / "d.bin")
    with pytest.raises(CheckpointError, match="does not have bfloat16"):
        convert(checkpoint(tmp_path / "f.pth"), tmp_path / "f.bin", dtype=torch.bfloat16)
    convert(tmp_path / "f.pth", tmp_path / "f.bin", dtype=torch.float16)
    narrow, exact = read(tmp_path / "f.bin").tensors, read(tmp_path / "f.pth").tensors
    assert torch.equal(narrow["head.weight"], exact["head.weight"].half())
    assert torch.equal(narrow["ln_out.bias"], exact["ln_out.bias"])


@pytest.mark.parametrize("container", NAMES, ids=lambda c: c.value)
def test_unused_tensors_of_block_0(tmp_path, container):
    """What a release carries though no model uses it is kept where there is a place for it, and else named."""
    sizes = {"blocks.0.att.v0": (32,), "blocks.0.att.v1": (32, 3), "blocks.0.att.v2": (3, 32)}
    unused = {name: torch.rand(size) for name, size in sizes.items()}
    source = checkpoint(tmp_path / "s.pth", **unused)
    done = convert(source, tmp_path / NAMES[container])
    found = read(tmp_path / NAMES[container]).tensors
    if container is Container.HUGGING_FACE:
        assert "left out blocks.0.att.v0, blocks.0.att.v1, blocks.0.att.v2" in done.notices[0]
        assert not unused.keys() & found.keys()
    else:
        assert not done.notices
        assert bits({name: found[name] for name in unused}) == bits(unused)
    assert load(tmp_path / NAMES[container]).tensors.keys() == SHAPE.tensors().keys()


def test_dtype_asked_for(tmp_path):
    """All tensors become the dtype that is asked for; numbers that it cannot hold are refused by name."""
    done = convert(checkpoint(tmp_path / "s.pth"), tmp_path / "h.pth", dtype=torch.float16)
    assert {tensor.dtype for tensor in read(tmp_path / "h.pth").tensors.values()} == {torch.float16}
    assert done.notices == (f"{len(SHAPE.tensors())} tensors of float32 became float16",)
    large = checkpoint(tmp_path / "l.pth", **{"ln_out.bias": torch.full((32,), 1e5)})
    with pytest.raises(CheckpointError, match=r"ln_out\.bias holds 1e\+05, which float16 cannot hold"):
        convert(large, tmp_path / "x.pth", dtype=torch.float16)
    assert not (tmp_path / "x.pth").exists()


def test_not_finite_numbers_are_kept(tmp_path):
    """A converter is no judge: NaN and Inf arrive as they were."""
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45] * 8)
    convert(checkpoint(tmp_path / "s.pth", **{"ln_out.bias": odd}), tmp_path / "m.safetensors")
    assert bits({"x": read(tmp_path / "m.safetensors").tensors["ln_out.bias"]}) == bits({"x": odd})


# As the users of each container expect it


def test_pth_as_releases_are(tmp_path):
    """Torch reads the .pth; vectors are [1, 1, C], each tensor has its own storage, and all are contiguous."""
    convert(checkpoint(tmp_path / "s.pth"), tmp_path / "m.bin")
    convert(tmp_path / "m.bin", tmp_path / "m.pth")
    tensors = torch.load(tmp_path / "m.pth", weights_only=True)
    for name in ("att.x_r", "att.w0", "att.k_k", "att.k_a", "ffn.x_k"):
        assert tensors[f"blocks.1.{name}"].shape == (1, 1, 32)
    assert tensors["blocks.1.ln1.weight"].shape == (32,)
    assert tensors["blocks.1.att.r_k"].shape == (2, 16)
    assert tensors["blocks.1.att.w1"].shape == (32, 4)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safetensors_library_reads_ours(tmp_path, dtype):
    """The safetensors library finds the same numbers, and the note that transformers asks for."""
    source = checkpoint(tmp_path / "s.pth", dtype)
    convert(source, tmp_path / "m.safetensors")
    found = load_file(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert found["blocks.0.att.x_r"].shape == (1, 1, 32)
    wanted = read(source).tensors
    assert bits({name: found[name].view(tensor.shape) for name, tensor in wanted.items()}) == bits(wanted)


def records(path):
    """The tensors of a ggmf file as they are stored: dimensions, data type and bytes."""
    data = path.read_bytes()
    position, found = 24, {}
    while position < len(data):
        axes, length, code = struct.unpack_from("<3I", data, position)
        dims = struct.unpack_from(f"<{axes}I", data, position + 12)
        position += 12 + 4 * axes
        name = data[position : position + length].decode()
        size = torch.Size(dims).numel() * (2 if code else 4)
        found[name] = (dims, code, data[position + length : position + length + size])
        position += length + size
    return data[:24], found


def test_ggmf_as_rwkv_cpp_writes_it(shared_data, tmp_path):
    """The test model of rwkv.cpp comes back from a .pth as it was: header, and each record byte for byte."""
    original = shared_data / "tiny_rwkv7_834k" / "tiny-rwkv-7v0-834K-FP32.bin"
    convert(original, tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "m.bin")
    assert records(tmp_path / "m.bin") == records(original)


TABLE = {
    "emb.weight": ("model.embeddings.weight", (10, 32)),
    "blocks.0.ln0.weight": ("model.layers.0.pre_norm.weight", (32,)),
    "blocks.0.ln0.bias": ("model.layers.0.pre_norm.bias", (32,)),
    "ln_out.weight": ("model.norm.weight", (32,)),
    "ln_out.bias": ("model.norm.bias", (32,)),
    "head.weight": ("lm_head.weight", (10, 32)),
    "blocks.1.att.v0": ("model.layers.1.attn.v_lora.lora.2.bias", (32,)),
    "blocks.1.att.v1": ("model.layers.1.attn.v_lora.lora.0.weight", (6, 32)),
    "blocks.1.att.v2": ("model.layers.1.attn.v_lora.lora.2.weight", (32, 6)),
} | {
    f"blocks.{i}.{ours}": (f"model.layers.{i}.{theirs}", shape)
    for i in (0, 1)
    for ours, theirs, shape in (
        ("ln1.weight", "attn_norm.weight", (32,)),
        ("ln1.bias", "attn_norm.bias", (32,)),
        ("ln2.weight", "ffn_norm.weight", (32,)),
        ("ln2.bias", "ffn_norm.bias", (32,)),
        ("att.x_r", "attn.x_r", (1, 1, 32)),
        ("att.x_w", "attn.x_w", (1, 1, 32)),
        ("att.x_k", "attn.x_k", (1, 1, 32)),
        ("att.x_v", "attn.x_v", (1, 1, 32)),
        ("att.x_a", "attn.x_a", (1, 1, 32)),
        ("att.x_g", "attn.x_g", (1, 1, 32)),
        ("att.w0", "attn.w_lora.lora.2.bias", (32,)),
        ("att.w1", "attn.w_lora.lora.0.weight", (4, 32)),
        ("att.w2", "attn.w_lora.lora.2.weight", (32, 4)),
        ("att.a0", "attn.a_lora.lora.2.bias", (32,)),
        ("att.a1", "attn.a_lora.lora.0.weight", (5, 32)),
        ("att.a2", "attn.a_lora.lora.2.weight", (32, 5)),
        ("att.g1", "attn.g_lora.lora.0.weight", (7, 32)),
        ("att.g2", "attn.g_lora.lora.2.weight", (32, 7)),
        ("att.k_k", "attn.k_k", (32,)),
        ("att.k_a", "attn.k_a", (32,)),
        ("att.r_k", "attn.r_k", (2, 16)),
        ("att.receptance.weight", "attn.r_proj.weight", (32, 32)),
        ("att.key.weight", "attn.k_proj.weight", (32, 32)),
        ("att.value.weight", "attn.v_proj.weight", (32, 32)),
        ("att.output.weight", "attn.o_proj.weight", (32, 32)),
        ("att.ln_x.weight", "attn.g_norm.weight", (32,)),
        ("att.ln_x.bias", "attn.g_norm.bias", (32,)),
        ("ffn.x_k", "ffn.x_k", (32,)),
        ("ffn.key.weight", "ffn.key.weight", (80, 32)),
        ("ffn.value.weight", "ffn.value.weight", (32, 80)),
    )
}
"""flash-linear-attention's names and shapes, as its conversion script and its modules document them."""


def test_names_of_hugging_face_layout(tmp_path):
    """Each tensor has flash-linear-attention's name, shape and orientation, and there is no other."""
    convert(checkpoint(tmp_path / "s.pth"), tmp_path / "m")
    found = load_file(tmp_path / "m" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == dict(TABLE.values())
    for ours, tensor in synthetic(SHAPE).tensors.items():
        theirs = found[TABLE[ours][0]]
        is_pair = re.fullmatch(r"blocks\.\d\.att\.[wavg][12]", ours)
        assert torch.equal(theirs.squeeze(), tensor.T if is_pair else tensor), ours


def test_config_of_hugging_face_layout(tmp_path):
    """The configuration says what the tensors say."""
    convert(checkpoint(tmp_path / "s.pth", torch.bfloat16), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["architectures"] == ["RWKV7ForCausalLM"]
    assert config["model_type"] == "rwkv7"
    assert config["torch_dtype"] == "bfloat16"
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "num_heads", "intermediate_size")
    assert [config[size] for size in sizes] == [10, 32, 2, 16, 2, 80]
    ranks = ("decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim")
    assert [config[rank] for rank in ranks] == [4, 5, 6, 7]


def test_one_layer(tmp_path):
    """A model of one layer has no value residual, whatever the configuration says about its rank."""
    shape = ModelShape(n_layer=1, n_embd=32, head_size=16, n_ffn=80, n_vocab=10, ranks=SHAPE.ranks)
    pth.write(synthetic(shape).tensors, tmp_path / "s.pth")
    convert(tmp_path / "s.pth", tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"v_low_rank_dim": 32}))
    assert load(tmp_path / "m").shape.ranks.value == 0


def test_stale_head_count_of_published_exports(tmp_path):
    """Published exports carry the head count of another model beside the head size; the library ignores it."""
    convert(checkpoint(tmp_path / "s.pth"), tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_heads": 32}))
    assert load(tmp_path / "m").shape.n_head == 2


@pytest.mark.parametrize("kind", ["merged", "sharded", "torch", "torch sharded"])
def test_other_folders(tmp_path, kind):
    """Folders by others are read: shifts in one tensor, weights in several files, and torch's own format."""
    source = checkpoint(tmp_path / "s.pth")
    convert(source, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    tensors = load_file(weights)
    if kind == "merged":
        for i in (0, 1):
            shifts = [tensors.pop(f"model.layers.{i}.attn.x_{q}").flatten() for q in "rwkvag"]
            tensors[f"model.layers.{i}.attn.x_x"] = torch.stack(shifts)
    weights.unlink()
    suffix = "bin" if "torch" in kind else "safetensors"
    stem = "pytorch_model" if "torch" in kind else "model"
    parts = ["-1", "-2"] if "sharded" in kind else [""]
    shards = {name: f"{stem}{part}.{suffix}" for name, part in zip(tensors, itertools.cycle(parts), strict=False)}
    for part in set(shards.values()):
        some = {name: tensor for name, tensor in tensors.items() if shards[name] == part}
        (torch.save if "torch" in kind else save_file)(some, weights.with_name(part))
    if "sharded" in kind:
        weights.with_name(f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": shards}))
    assert bits(read(tmp_path / "m").tensors) == bits(read(source).tensors)


# Whole or not at all


@pytest.mark.parametrize("container", NAMES, ids=lambda c: c.value)
def test_nothing_is_overwritten(tmp_path, container):
    """An existing goal stays as it is, unless replacing it is asked for."""
    source, goal = checkpoint(tmp_path / "s.pth"), tmp_path / NAMES[container]
    convert(source, goal)
    before = read(goal).sha256
    with pytest.raises(CheckpointError, match="exists already"):
        convert(source, goal, dtype=torch.float16)
    assert read(goal).sha256 == before
    convert(source, goal, dtype=torch.float16, force=True)
    assert read(goal).tensors["emb.weight"].dtype == torch.float16
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"s.pth", goal.name})


def test_force_spares_other_folders(tmp_path):
    """Replacing is no way to lose a folder of other things."""
    source = checkpoint(tmp_path / "s.pth")
    home = tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    (home / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="remove it yourself"):
        convert(source, home, force=True)
    assert (home / "photos").is_dir()


def test_source_is_spared(tmp_path):
    """A goal that is the source, or holds it, is refused even with force."""
    source = checkpoint(tmp_path / "s.pth")
    convert(source, tmp_path / "m")
    for whole, goal in ((source, source), (tmp_path / "m" / ".." / "s.pth", source), (tmp_path / "m", tmp_path / "m")):
        with pytest.raises(CheckpointError, match="choose another name"):
            convert(whole, goal, force=True)


@pytest.mark.parametrize(
    ("name", "message"), [("m.zip", "suffix '.zip' tells no container"), ("no/m.pth", "No such file")]
)
def test_impossible_goals(tmp_path, name, message):
    """A goal that cannot be is refused with the reason."""
    with pytest.raises(CheckpointError, match=message):
        convert(checkpoint(tmp_path / "s.pth"), tmp_path / name)


def test_container_beats_suffix(tmp_path):
    """Where a container is asked for, the name does not matter."""
    convert(checkpoint(tmp_path / "s.pth"), tmp_path / "m.zip", container=Container.GGMF)
    assert read(tmp_path / "m.zip").container is Container.GGMF
    assert set(SUFFIXES.values()) == set(NAMES)


def test_extra_files(tmp_path):
    """Whoever adds files to the folder does so before it appears; a failure leaves nothing."""
    source = checkpoint(tmp_path / "s.pth")

    def add(folder, shape):
        assert not (tmp_path / "m").exists()
        (folder / "tokenizer.txt").write_text(str(shape.n_vocab))

    def fail(folder, shape):
        raise OSError(28, f"No space left for {shape.n_vocab} ids in {folder.name}")

    with pytest.raises(CheckpointError, match="No space left"):
        convert(source, tmp_path / "m", extra=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["s.pth"]
    convert(source, tmp_path / "m", extra=add)
    assert (tmp_path / "m" / "tokenizer.txt").read_text() == "10"


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from reference.convert import convert
from reference.shape import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
for goal in sys.argv[2:]:
    try:
        convert(Path(sys.argv[1]), Path(goal))
    except CheckpointError as error:
        print(error)
"""


def test_full_disk(tmp_path):
    """Where no more can be written, the error says so, and nothing is left."""
    source = checkpoint(tmp_path / "s.pth")
    goals = [str(tmp_path / name) for name in NAMES.values()]
    command = [sys.executable, "-c", FULL_DISK, str(source), *goals]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.partition(": cannot be written")[0] for line in done.stdout.splitlines()] == goals
    assert [path.name for path in tmp_path.iterdir()] == ["s.pth"]


@pytest.mark.parametrize("name", NAMES.values())
def test_killed(tmp_path, name):
    """Killed just before the goal gets its name, nothing lies under that name, and the next run succeeds."""
    source = checkpoint(tmp_path / "s.pth")
    code = (
        "import sys, time; from pathlib import Path; import reference.convert as c;"
        "c._compare = lambda *_: (print('written', flush=True), time.sleep(60));"
        "c.convert(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(source), str(tmp_path / name)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / name).exists()
    convert(source, tmp_path / name)
    assert load(tmp_path / name).shape == SHAPE


MEMORY = """
import os, sys, threading, time
from pathlib import Path
from reference.convert import convert

def held():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024

def watch():
    while True:
        peaks.append(held())
        time.sleep(0.002)

peaks = []
threading.Thread(target=watch, daemon=True).start()
for goal in sys.argv[2:]:
    before, peaks = held(), []
    convert(Path(sys.argv[1]), Path(goal))
    print((max(peaks) - before) / os.path.getsize(sys.argv[1]))
"""


def test_memory(tmp_path):
    """A conversion without new dtypes holds one copy of the checkpoint at most in memory of its own."""
    shape = ModelShape(n_layer=2, n_embd=512, head_size=64, n_ffn=2048, n_vocab=20_000, ranks=SHAPE.ranks)
    pth.write(synthetic(shape).tensors, tmp_path / "s.pth")
    goals = [str(tmp_path / name) for name in NAMES.values()]
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "s.pth"), *goals]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(float(copies) < 1.2 for copies in done.stdout.splitlines()), done.stdout
