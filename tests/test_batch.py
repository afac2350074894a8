"""Many compiles: in order, at once as memory allows, and none left behind where one fails."""

import dataclasses
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest

from compile.batch import compile_all, needed_bytes
from compile.compiler import CompileError
from compile.disk import needed_bytes as disk_bytes
from compile.identity import hash_arrays
from compile.stages import Stage
from compile.streamed import Streamed, float32_bytes
from harness.checkpoints import DEFAULT, open_model
from harness.sizes import BY_BLOCK, SIZES
from harness.weights import weights_of_file, weights_of_model, weights_of_size
from reference.shape import CheckpointError, LoraRanks, ModelShape
from reference.synthetic import synthetic
from tests.fake_compiler import ARRAYS, fake_job

SHAPE = ModelShape(
    n_layer=3, n_embd=128, head_size=64, n_ffn=256, n_vocab=50, ranks=LoraRanks(decay=8, rate=8, value=8, gate=8)
)


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Three jobs of a fake toolchain."""
    job = fake_job(tmp_path, monkeypatch)
    return [dataclasses.replace(job, flags=("--opt", number)) for number in "123"]


def spans(bmodels):
    """When each compile began and ended, by the files that it left, in the order of beginning."""
    files = [(bmodel.folder / "export.log", bmodel.folder / "result.json") for bmodel in bmodels]
    return sorted(tuple(file.stat().st_mtime_ns for file in both) for both in files)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_of_them(jobs, tmp_path, workers):
    """Results come in the order of the jobs, whichever was done first; a second time they are in the cache."""
    cache = tmp_path / "cache"
    made = compile_all(jobs, cache, workers=workers)
    assert [bmodel.result.key for bmodel in made] == [job.key for job in jobs]
    assert not any(bmodel.cached for bmodel in made)
    assert all(bmodel.cached for bmodel in compile_all(jobs, cache))


def test_within_memory(jobs, tmp_path, monkeypatch):
    """Two that do not fit into the memory together are not compiled together; one that never fits is, alone."""
    monkeypatch.setenv("FAKE", "slow codegen")
    said = []
    one = needed_bytes(ARRAYS)
    made = compile_all(jobs[:2], tmp_path / "a", workers=2, memory_bytes=2 * one - 1, say=said.append)
    (_, end), (start, _) = spans(made)
    assert end <= start
    assert not any("alone" in line for line in said)
    made = compile_all(jobs[:2], tmp_path / "b", workers=2, memory_bytes=one - 1, say=said.append)
    (_, end), (start, _) = spans(made)
    assert end <= start
    assert sum("GiB allowed: alone" in line for line in said) == 2


def test_within_the_disk(jobs, tmp_path, monkeypatch):
    """Two of which each has room on the disk, but not both, are compiled one after the other."""
    monkeypatch.setenv("FAKE", "slow codegen")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * disk_bytes(ARRAYS) - 1))
    (_, end), (start, _) = spans(compile_all(jobs[:2], tmp_path / "cache", workers=2))
    assert end <= start


@pytest.mark.parametrize("workers", [1, 2])
def test_one_fails(jobs, tmp_path, monkeypatch, workers):
    """The failure is raised as it is, with its stage, and no worker is left."""
    monkeypatch.setenv("FAKE", "model_deploy.py:exit")
    with pytest.raises(CompileError, match="exited with status 3") as caught:
        compile_all(jobs, tmp_path / "cache", workers=workers)
    assert caught.value.stage is Stage.LOWER
    assert "the words of model_deploy" in str(caught.value)
    assert not multiprocessing.active_children()


def test_streamed():
    """Arrays are read anew at each access, checked against what was announced, and counted without being read."""
    read = []

    def zeros(name):
        read.append(name)
        return np.zeros((2, 3), np.float32)

    arrays = Streamed({"a": (2, 3), "b": (3, 2)}, zeros)
    assert float32_bytes(arrays) == 48
    assert float32_bytes(dict.fromkeys("ab", np.zeros((2, 3), np.float32))) == 48
    assert list(arrays.only(["a"])) == ["a"]
    assert "a" in arrays
    assert "c" not in arrays
    assert not read
    assert arrays["a"] is not arrays["a"]
    assert read == ["a", "a"]
    with pytest.raises(ValueError, match=r"b: read float32 \(2, 3\), but should be float32 \(3, 2\)"):
        arrays["b"]
    with pytest.raises(KeyError):
        arrays["c"]


def test_weights_of_a_size(monkeypatch):
    """One by one they are those of the whole checkpoint, in other processes too; their identity is their recipe's."""
    monkeypatch.setitem(BY_BLOCK, "tiny", SHAPE)
    weights = weights_of_size("tiny")
    for name, tensor in synthetic(SHAPE).tensors.items():
        assert (weights.arrays[name] == tensor.numpy()).all()
    again = pickle.loads(pickle.dumps(weights.arrays))  # noqa: S301 - what was pickled just now
    assert (again["head.weight"] == weights.arrays["head.weight"]).all()
    one, other = weights.sha256(["ln_out.weight"]), weights.sha256(["ln_out.bias"])
    assert one != other
    assert weights_of_size("tiny", seed=1).sha256(["ln_out.weight"]) != one
    assert weights_of_size("tiny").sha256(["ln_out.weight"]) == one


def test_weights_of_a_file(tmp_path):
    """From the file, one by one, they are those that are loaded at once, by identity too; what is none is refused."""
    model, weights = open_model(None), weights_of_file(DEFAULT)
    assert weights.shape == model.checkpoint.shape
    names = list(model.arrays)[:5]
    assert weights.sha256(names) == weights_of_model(model).sha256(names)
    assert weights.arrays_sha256 == hash_arrays(model.arrays)
    again = pickle.loads(pickle.dumps(weights.arrays))  # noqa: S301 - what was pickled just now
    assert (again["head.weight"] == model.arrays["head.weight"]).all()
    (tmp_path / "m.pth").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError):
        weights_of_file(tmp_path / "m.pth")


def test_published_sizes():
    """Layers and widths are the releases', and the numbers of parameters those of their names."""
    every = SIZES | BY_BLOCK
    found = {name: (shape.n_layer, shape.n_embd) for name, shape in every.items()}
    expected = {"0.1B": (12, 768), "0.4B": (24, 1024), "1.5B": (24, 2048), "2.9B": (32, 2560), "7.2B": (32, 4096)}
    assert found == expected
    for name, shape in every.items():
        count = sum(int(np.prod(size)) for size in shape.tensors().values())
        assert abs(count / 1e9 - float(name[:-1])) < 0.1
