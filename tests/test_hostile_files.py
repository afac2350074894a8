"""Broken, foreign and hostile files: each is refused with an explanation, quickly, and nothing in it runs."""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.checkpoint import load, read
from reference.formats import fla, ggmf, pth, safetensors_file
from reference.shape import CheckpointError, LoraRanks, ModelShape
from reference.synthetic import synthetic

ROOT = Path(__file__).parent.parent
SHAPE = ModelShape(
    n_layer=2, n_embd=32, head_size=16, n_ffn=64, n_vocab=10, ranks=LoraRanks(decay=4, rate=5, value=6, gate=7)
)
WRITERS = {"pth": pth.write, "safetensors": safetensors_file.write, "ggmf": ggmf.write, "hugging-face": fla.write}


def good() -> dict[str, torch.Tensor]:
    """A small checkpoint's tensors, to be spoilt."""
    return dict(synthetic(SHAPE).tensors)


class Runs:
    """Prints when unpickled by a reader that trusts."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Ask the reader to call print."""
        return print, ("code ran",)


class Described:
    """A tensor as torch's pickle describes one, with any sizes whatever."""

    def __init__(self, size, stride, key="0", numbers=4, offset=0, storage=torch.FloatStorage) -> None:
        self.identity = ("storage", storage, key, "cpu", numbers)
        self.rest = (offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        """Ask for torch's own function."""
        storage = Storage()
        storage.identity = self.identity
        return torch._utils._rebuild_tensor_v2, (storage, *self.rest)


class Storage:
    """Stands for a storage in a pickle."""


class Pickler(pickle._Pickler):
    """Writes pickles as torch does."""

    def persistent_id(self, value):
        """Storages are references."""
        return value.identity if isinstance(value, Storage) else None


def pickled(value) -> bytes:
    """The pickle of *value*, protocol 2."""
    stream = io.BytesIO()
    Pickler(stream, 2).dump(value)
    return stream.getvalue()


def archive(path, program, storages=None, compression=zipfile.ZIP_STORED):
    """Write a zip archive as torch does."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("m/data.pkl", program)
        file.writestr("m/version", "3")
        for key, data in (storages or {"0": bytes(16)}).items():
            file.writestr(f"m/data/{key}", data)
    return path


def spoilt(changes=None, without=()):
    """Builds a .pth file of a good checkpoint with some tensors changed, added or left out."""

    def build(path):
        torch.save({name: t for name, t in (good() | (changes or {})).items() if name not in without}, path)
        return path

    return build


def holding(value):
    """Builds a .pth file of anything."""
    return lambda path: torch.save(value, path) or path


def one(*arguments, **options):
    """Builds an archive with one tensor, emb.weight, as described."""
    return lambda path: archive(path, pickled({"emb.weight": Described(*arguments, **options)}))


def program(data):
    """Builds an archive with this pickle."""
    return lambda path: archive(path, data)


def raw(path, data):
    """A file of these bytes."""
    path.write_bytes(data)
    return path


def legacy(path, program):
    """The layout before torch 1.6, with this pickle as its tensors."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    return raw(path, pth.LEGACY_MAGIC + pickled(1001) + pickled(system) + program + pickled([]))


def whole(path, container="pth"):
    """A good file."""
    WRITERS[container](good(), path)
    return path


def cut(path, size):
    """The file without its end: *size* bytes, or from the end where negative."""
    return raw(path, path.read_bytes()[:size])


def header_of(header, data=bytes(64)):
    """Builds a safetensors file of a header and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda path: raw(path, struct.pack("<Q", len(text)) + text + data)


def entry(shape=(4,), dtype="F32", begin=0, end=16):
    """One tensor in a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def record(name=b"emb.weight", dims=(4,), code=0, data=bytes(16), key_length=None):
    """One tensor in a ggmf file."""
    header = struct.pack("<3I", len(dims), len(name) if key_length is None else key_length, code)
    return header + struct.pack(f"<{len(dims)}I", *dims) + name + data


def ggmf_of(*records, version=101):
    """Builds a ggmf file of these records."""
    header = struct.pack("<6I", ggmf.MAGIC, version, 10, 32, 2, 0)
    return lambda path: raw(path, header + b"".join(records))


def folder(change=None, **config):
    """Builds a folder in Hugging Face's layout, its configuration changed."""

    def build(path):
        fla.write(good(), path)
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        if change:
            change(path)
        return path

    return build


def indexed(**shards):
    """Builds a folder whose weights are moved to model-1.safetensors, with an index of these tensors."""

    def change(path):
        (path / "model.safetensors").rename(path / "model-1.safetensors")
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))

    return folder(change)


def other(*names):
    """Builds a .pth file of another architecture's tensors."""
    return holding({name: torch.zeros(4, 4) for name in names})


def pipe(path):
    """A pipe that nobody writes to."""
    os.mkfifo(path)
    return path


def unreadable(path):
    """A file that may not be read."""
    whole(path).chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("run by a user who may read everything")
    return path


def traversal(path):
    """An archive with an entry that points out of it."""
    with zipfile.ZipFile(whole(path), "a") as file:
        file.writestr("archive/../../escaped", b"")
    return path


def big_endian(path):
    """An archive that says that its numbers are big-endian."""
    with zipfile.ZipFile(archive(path, pickled({})), "a") as file:
        file.writestr("m/byteorder", "big")
    return path


def other_zip(path):
    """An archive of something else."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "text")
    return path


def aliases(path):
    """Four thousand tensors of a megabyte, all the same one."""
    tensors = {f"t{i}": Described((1 << 18,), (1,), numbers=1 << 18) for i in range(4000)}
    return archive(path, pickled(tensors), {"0": bytes(1 << 20)})


def foreign_tensor(path):
    """A folder whose weights are another model's."""
    folder()(path)
    safetensors_file.write_tensors({"model.layers.0.attn.q": torch.zeros(2)}, path / "model.safetensors")
    return path


def piped_weights(path):
    """A folder whose weights are a pipe."""
    folder()(path)
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")
    return path


def overlapping_entries(path):
    """An archive of many entries that are one and the same megabyte."""
    archive(path, pickled({}), {str(i): bytes(1 << 20 if i == 0 else 1) for i in range(40)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
        position = file.start_dir
    for info in entries:
        if "/data/" in info.filename and not info.filename.endswith("/0"):
            struct.pack_into("<3I", data, position + 16, 0, 1 << 20, 1 << 20)
            struct.pack_into("<I", data, position + 42, entries[1].header_offset)
        position += 46 + len(info.filename)
    return raw(path, bytes(data))


def damaged(path):
    """A good archive with one flipped bit in the data of a tensor."""
    data = bytearray(whole(path).read_bytes())
    with zipfile.ZipFile(path) as file:
        info = max(file.infolist(), key=lambda info: info.file_size)
    data[info.header_offset + 30 + len(info.filename) + 600] ^= 1
    return raw(path, bytes(data))


def hash_bomb():
    """A tuple nested so that hashing it would take for ever, as a dictionary's key."""
    return b"\x80\x02}K\x01K\x02\x86q\x00" + b"h\x00\x86q\x00" * 60 + b"K\x01s."


def described_shards():
    """An index that is right, but for one tensor too many."""
    return dict.fromkeys([*map(fla.their_name, good()), "more"], "model-1.safetensors")


HUGE = 1 << 40
COMPLEX = torch.zeros(32, dtype=torch.complex64)
FLOAT8 = torch.zeros(32).to(torch.float8_e5m2)
BYTEARRAY = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x10\x85R."
DEEP = b"\x80\x02]" + b"]" * 500_000 + b"a" * 500_000 + b"."

KINDS = {
    # no checkpoint at all
    "empty": (lambda p: raw(p, b""), "is empty"),
    "text": (lambda p: raw(p, b"hello, world " * 40), "begins as no checkpoint does"),
    "one byte": (lambda p: raw(p, b"P"), "begins as no checkpoint does"),
    "folder without config": (lambda p: p.mkdir() or p, r"without config\.json"),
    "pipe": (pipe, "no regular file"),
    "device": (lambda _: Path("/dev/zero"), "no regular file"),
    "dangling link": (lambda p: p.symlink_to("nowhere") or p, "No such file"),
    "unreadable": (unreadable, "Permission denied"),
    # zip archives
    "zip magic alone": (lambda p: raw(p, b"PK\x03\x04 not really a zip"), "damaged zip archive"),
    "truncated zip": (lambda p: cut(whole(p), -500), "damaged zip archive"),
    "zip of something else": (other_zip, "0 entries NAME/data.pkl"),
    "zip bomb": (
        lambda p: archive(p, pickled({}), {"0": bytes(100 << 20)}, zipfile.ZIP_DEFLATED),
        "unpacked, are larger than its",
    ),
    "compressed": (lambda p: archive(p, pickled({}), {"0": os.urandom(99)}, zipfile.ZIP_DEFLATED), "is compressed"),
    "overlapping zip entries": (overlapping_entries, "unpacked, are larger than its"),
    "zip path traversal": (traversal, "points out of the archive"),
    "damaged data": (damaged, "checksum differs"),
    "big-endian": (big_endian, "should be little-endian"),
    # pickles
    "truncated pickle": (program(pickled({"emb.weight": Described((4,), (1,))})[:-20]), "truncated or damaged"),
    "empty pickle": (program(b""), "truncated or damaged"),
    "hostile pickle": (program(pickled({"a": Runs()})), "calls '(builtins|__builtin__).print'"),
    "hostile legacy pickle": (lambda p: legacy(p, pickled(Runs())), "calls '(builtins|__builtin__).print'"),
    "bare hostile pickle": (lambda p: raw(p, pickle.dumps(Runs())), "begins as no checkpoint does"),
    "hostile class": (program(b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00lso."), "instruction OBJ"),
    "bytearray bomb": (program(BYTEARRAY), "calls 'builtins.bytearray'"),
    "memo bomb": (program(b"\x80\x02]r\xfe\xff\xff\xff."), "what it holds is of type list"),
    "hash bomb": (program(hash_bomb()), "a tuple as key"),
    "deep pickle": (program(DEEP), "what it holds is of type list"),
    "long pickle": (program(b"\x80\x02}" + b"N" * (5 << 20)), "should be at most"),
    "list": (holding(list(good().values())), "what it holds is of type list"),
    "one tensor": (holding(torch.zeros(3)), "what it holds is one tensor"),
    "wrapped": (holding({"state_dict": good(), "epoch": 3}), "wraps a checkpoint"),
    "number among tensors": (spoilt({"step": 3}), "'step' is of type int"),
    "model object": (holding(torch.nn.Linear(2, 2)), "instruction|calls"),
    "number as name": (holding({1: torch.zeros(2)}), "int as key"),
    "control characters": (holding({"\x1b[2J": torch.zeros(2)}), r"x1b\[2J' is no tensor's name"),
    # tensors in pickles
    "sparse": (holding({"emb.weight": torch.eye(4).to_sparse()}), "is not read|are not read|instruction"),
    "complex": (spoilt({"ln_out.bias": COMPLEX}), "ln_out.bias holds 'torch.ComplexFloatStorage'"),
    "integer": (spoilt({"ln_out.bias": torch.zeros(32).long()}), "ln_out.bias holds 'torch.LongStorage'"),
    "float8": (spoilt({"ln_out.bias": FLOAT8}), "_rebuild_tensor_v3"),
    "expanded": (spoilt({"emb.weight": torch.zeros(1, 1).expand(10, 32)}), "emb.weight .*repeats numbers"),
    "huge on tiny storage": (one((HUGE, 64), (64, 1)), "emb.weight has shape .*should have sizes"),
    "beyond its storage": (one((2, 4), (4, 1)), "emb.weight has shape .*its storage holds 4"),
    "negative stride": (one((4,), (-1,)), "emb.weight has an offset or strides"),
    "overlapping strides": (one((2, 3), (1, 1)), "emb.weight .*repeats numbers"),
    "no storage": (one((4,), (1,), key="9"), "no data for emb.weight"),
    "aliases": (aliases, "tensors that share data"),
    "zero size": (spoilt({"emb.weight": torch.zeros(0, 32)}), "emb.weight has shape"),
    "scalar": (spoilt({"emb.weight": torch.tensor(1.0)}), "emb.weight has no shape"),
    # checkpoints of the wrong tensors
    "nan": (spoilt({"ln_out.bias": torch.full((32,), float("nan"))}), "ln_out.bias holds NaN"),
    "wrong shape": (spoilt({"head.weight": torch.zeros(10, 31)}), "head.weight has shape"),
    "missing": (spoilt(without={"blocks.1.att.v0"}), "no tensor 'blocks.1.att.v0'"),
    "extra": (spoilt({"blocks.0.att.more": torch.zeros(3)}), "does not have: blocks.0.att.more"),
    "gap": (spoilt({"blocks.3.ln1.weight": torch.zeros(32)}), "without a gap"),
    "absurd layer": (spoilt({"blocks.999999999.ln1.weight": torch.zeros(32)}), "without a gap"),
    "foreign digit": (spoilt({"blocks.\u0663.ln1.weight": torch.zeros(32)}), "no tensor's name"),
    "unused of odd shape": (spoilt({"blocks.0.att.v1": torch.zeros(3)}), r"blocks.0.att.v1 has shape \(3,\)"),
    "RWKV-4": (other("emb.weight", "blocks.0.att.time_decay", "blocks.0.att.time_first"), "this is RWKV-4"),
    "RWKV-5": (other("blocks.0.att.time_decay", "blocks.0.att.time_faaaa"), "this is RWKV-5"),
    "RWKV-6": (other("blocks.0.att.time_maa_x", "blocks.0.att.time_faaaa"), "this is RWKV-6"),
    "deep embeddings": (spoilt({"blocks.0.ffn.s_emb.weight": torch.zeros(2, 2)}), "deep embeddings"),
    "Llama": (other("model.layers.0.self_attn.q_proj.weight"), "Llama kind"),
    "GPT": (other("transformer.h.0.attn.c_attn.weight"), "GPT kind"),
    "state file": (other("blocks.0.att.time_state"), "a tuned initial state"),
    "their names in a file": (lambda p: folder()(p) / "model.safetensors", "give the folder"),
    # safetensors
    "st huge header": (lambda p: raw(p, struct.pack("<Q", 1 << 62) + b"{" * 100), "a header of 4611686018427387904"),
    "st truncated": (lambda p: cut(whole(p, "safetensors"), -10), "truncated"),
    "st truncated header": (lambda p: cut(whole(p, "safetensors"), 300), "truncated: the header"),
    "st no JSON": (header_of(b"{" + b"x" * 30), "is not JSON"),
    "st deep JSON": (header_of(b'{"a":' + b"[" * 200_000), "is not JSON"),
    "st number": (header_of(b'{"a":1}'), "a has no shape"),
    "st duplicate": (header_of(b'{"a":{},"a":{}}'), "'a' twice"),
    "st overlap": (header_of({"a": entry(), "b": entry(begin=8, end=24)}), "b begins at byte 8"),
    "st hole": (header_of({"a": entry(begin=4, end=20)}), "a begins at byte 4 of the data, but should at 0"),
    "st trailing": (header_of({"a": entry()}), "its header describes"),
    "st wrong size": (header_of({"a": entry(shape=(5,))}), "a has 16 bytes, but shape .* needs 20"),
    "st beyond": (header_of({"a": entry(end=1 << 60)}), "data_offsets"),
    "st negative": (header_of({"a": entry(begin=-16, end=0)}), "data_offsets"),
    "st integer": (header_of({"a": entry(dtype="I64")}), "a holds 'I64'"),
    "st dtype of another type": (header_of({"a": entry(dtype=["F32"])}), "a holds a list"),
    "st overflow": (header_of({"a": entry(shape=(HUGE, HUGE))}), "a has shape"),
    "st fractional": (header_of({"a": entry(shape=(1.5,))}), "a has no shape"),
    "st empty": (header_of({"__metadata__": {}}), "holds no tensors"),
    # ggmf
    "ggmf magic alone": (lambda p: raw(p, b"fmgg"), "truncated: the header"),
    "ggmf version": (ggmf_of(version=100), "version 100, but should be"),
    "ggmf truncated": (lambda p: cut(whole(p, "ggmf"), -10), "truncated"),
    "ggmf overflow": (ggmf_of(record(dims=(1 << 31, 1 << 31, 1 << 31))), "emb.weight has shape"),
    "ggmf zero": (ggmf_of(record(dims=(0,), data=b"")), "emb.weight has shape"),
    "ggmf duplicate": (ggmf_of(record(), record()), "'emb.weight' occurs twice"),
    "ggmf long key": (ggmf_of(record(key_length=1 << 31)), "a name of 2147483648 bytes"),
    "ggmf many axes": (ggmf_of(record(dims=(1,) * 9)), "9 axes"),
    "ggmf quantised": (ggmf_of(record(code=8)), "data type 8"),
    "ggmf foreign key": (ggmf_of(record(name=b"\xff\xfe")), "no tensor's name"),
    "ggmf header": (ggmf_of(record(dims=(32, 9), data=bytes(4 * 9 * 32))), "its header says"),
    "ggmf shifts": (ggmf_of(record(name=b"blocks.0.att.x_rwkvag", dims=(2, 2))), "should have 6 vectors"),
    # folders
    "hf other model": (folder(model_type="llama"), "is 'llama', but should be 'rwkv7'"),
    "hf contradiction": (folder(num_hidden_layers=3), "num_hidden_layers 3, but the tensors say 2"),
    "hf ranks": (folder(gate_low_rank_dim=64), "gate_low_rank_dim 64, but the tensors say 7"),
    "hf heads": (folder(head_dim=None, num_heads=4), "num_heads 4, but the tensors say 2"),
    "hf eps": (folder(norm_eps=1e-6), "norm_eps 1e-06, but RWKV-7 has 1e-05"),
    "hf hybrid": (folder(attn={"layers": [1]}), "attn a dict"),
    "hf value width": (folder(value_dim=[32, 64]), "value_dim"),
    "hf no JSON": (folder(lambda f: (f / "config.json").write_text("{")), r"config\.json: the file is not JSON"),
    "hf no weights": (folder(lambda f: (f / "model.safetensors").unlink()), "no weights"),
    "hf foreign tensor": (foreign_tensor, "a tensor model.layers.0.attn.q"),
    "hf traversal": (indexed(a="../../etc/passwd"), "not in '../../etc/passwd'"),
    "hf absolute": (indexed(a="/etc/x.safetensors"), "not in '/etc/x.safetensors'"),
    "hf missing shard": (indexed(a="model-2.safetensors"), r"model-2.*No such file"),
    "hf missing tensor": (indexed(**described_shards()), "no tensor 'more'"),
    "hf tensor beside the index": (indexed(a="model-1.safetensors"), "the index beside it does not say so"),
    "hf empty index": (indexed(), "no 'weight_map'"),
    "hf pipe": (piped_weights, "no regular file"),
}
"""How to build a file of each kind at a path, and what its refusal says."""


@pytest.mark.parametrize("kind", KINDS)
def test_refused(tmp_path, capfd, kind):
    """Each kind is refused with the file and what is wrong in it, and no code in it runs."""
    build, message = KINDS[kind]
    path = build(tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert "code ran" not in capfd.readouterr().out


CONFINED = """
import resource, sys, time
from pathlib import Path
from reference.checkpoint import load
from reference.shape import CheckpointError
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
for path in sys.argv[1:]:
    began = time.monotonic()
    try:
        load(Path(path))
    except CheckpointError as error:
        assert time.monotonic() - began < 20, f"{path}: slow"
        continue
    sys.exit(f"{path}: was loaded")
print("all refused")
"""


def test_bombs_in_little_memory(tmp_path):
    """Files that ask for terabytes are refused within 256 MiB, without writing, within seconds."""
    bombs = [kind for kind in KINDS if "bomb" in kind or "huge" in kind or "overflow" in kind or "deep" in kind]
    bombs += ["aliases", "expanded", "absurd layer", "overlapping zip entries", "long pickle", "ggmf long key"]
    paths = [KINDS[kind][0](tmp_path / kind.replace(" ", "-")) for kind in bombs]
    sparse = tmp_path / "sparse"
    whole(sparse)
    os.truncate(sparse, 1 << 40)
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, *map(str, [*paths, sparse])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "all refused\n", done.stderr


@pytest.mark.parametrize("build", [spoilt(), folder(), *(partial(whole, container=c) for c in WRITERS)])
def test_good_neighbours(tmp_path, build):
    """The builders' untouched files load: what is refused is refused for its fault."""
    assert load(build(tmp_path / "m")).shape == SHAPE


def test_good_pickle(tmp_path):
    """The hand-made pickles are as torch makes them: one that is right is read, by torch and by us."""
    path = archive(tmp_path / "m.pth", pickled({"a": Described((2, 2), (2, 1))}), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert torch.equal(torch.load(path)["a"], pth.read_tensors(path)["a"])


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A good checkpoint in every container, the legacy layout among them."""
    base = tmp_path_factory.mktemp("originals")
    for container, write in WRITERS.items():
        write(good(), base / container)
    torch.save(good(), base / "legacy", _use_new_zipfile_serialization=False)
    return base


@pytest.mark.parametrize("container", [*WRITERS, "legacy"])
@settings(max_examples=80)
@given(data=st.data())
def test_damage(originals, tmp_path_factory, container, data):
    """Cut short or with flipped bytes, a file is refused or loads whole: nothing else happens."""
    damaged_copy = tmp_path_factory.mktemp("damaged") / "m"
    file = damaged_copy
    if container == "hugging-face":
        shutil.copytree(originals / container, damaged_copy)
        file /= data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    else:
        shutil.copy(originals / container, damaged_copy)
    content = bytearray(file.read_bytes())
    size = len(content)
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, size - 1)) :]
    else:
        # Structure lies at either end; the data in between are mostly weights.
        places = st.integers(0, min(4000, size - 1)) | st.integers(max(0, size - 4000), size - 1)
        for place in data.draw(st.lists(places | st.integers(0, size - 1), min_size=1, max_size=4)):
            content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(content))
    loaded = None
    with contextlib.suppress(CheckpointError):
        loaded = load(damaged_copy)
    if loaded is not None:
        assert loaded.shape.tensors().keys() == loaded.tensors.keys()
        assert all(bool(tensor.isfinite().all()) for tensor in loaded.tensors.values())
    shutil.rmtree(damaged_copy.parent)


@settings(max_examples=150)
@given(program=st.binary(max_size=60))
def test_any_pickle(tmp_path_factory, program):
    """Any bytes as an archive's pickle are refused: the interpreter has no other way out."""
    path = archive(tmp_path_factory.mktemp("pickle") / "m.pth", b"\x80\x02" + program)
    with pytest.raises(CheckpointError):
        read(path)
