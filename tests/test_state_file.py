"""Files of tuned initial states: read in the orientation in which others write them, and no other file is taken."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from reference.formats import pth
from reference.naive import Naive
from reference.shape import CheckpointError, LoraRanks, ModelShape
from reference.state import State
from reference.state_file import Shifts, load_state, save_state
from reference.synthetic import synthetic

SHAPE = ModelShape(
    n_layer=2, n_embd=128, head_size=64, n_ffn=128, n_vocab=97, ranks=LoraRanks(decay=4, rate=5, value=6, gate=7)
)
TOKENS = [5, 96, 0, 17, 42]


def tuned(dtype=torch.float32, shape=SHAPE):
    """A state as tuning makes it: WKV matrices alone."""
    state = State.zeros(shape, dtype)
    return State(state.att_shift, State.random(shape, 0, dtype).wkv, state.ffn_shift)


def by_hand(path, seed=0, dtype=torch.float32):
    """A state file as BlinkDL's training writes it: one random matrix a head, not symmetric at all."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"blocks.{i}.att.time_state": torch.randn(2, 64, 64, generator=generator).to(dtype)
        for i in range(SHAPE.n_layer)
    }
    torch.save(tensors, path)
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_round_trip(tmp_path, dtype):
    """A saved state is loaded as it was, in float32."""
    state = tuned(dtype)
    save_state(state, tmp_path / "s.pth")
    loaded = load_state(tmp_path / "s.pth", SHAPE)
    assert loaded.wkv.dtype == torch.float32
    assert torch.equal(loaded.wkv, state.wkv.float())
    assert not loaded.att_shift.any()
    assert not loaded.ffn_shift.any()


def test_file_as_others_write_it(tmp_path):
    """The file holds [H, key, value] by BlinkDL's names: the transpose of ours; all dtypes are read."""
    tensors = by_hand(tmp_path / "s.pth", dtype=torch.bfloat16)
    state = load_state(tmp_path / "s.pth", SHAPE)
    for i, tensor in enumerate(tensors.values()):
        assert torch.equal(state.wkv[i], tensor.transpose(1, 2).float())
    save_state(state, tmp_path / "t.pth")
    again = torch.load(tmp_path / "t.pth", weights_only=True)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor.float()) for name, tensor in tensors.items())


RWKV_PACKAGE = """
import os, sys
os.environ["RWKV_V7_ON"] = "1"
os.environ["RWKV_JIT_ON"] = "0"
import numpy, torch
from rwkv.model import RWKV
model = RWKV(model=sys.argv[1], strategy="cpu fp32")
raw = torch.load(sys.argv[2])
state = []
for i in range(model.args.n_layer):
    # As the package's own chat programs give a tuned state to the model.
    zeros = torch.zeros(model.args.n_embd)
    state += [zeros, raw[f"blocks.{i}.att.time_state"].transpose(1, 2).float().contiguous(), zeros.clone()]
rows = []
for token in map(int, sys.argv[4].split(",")):
    logits, state = model.forward([token], state)
    rows.append(logits)
numpy.save(sys.argv[3], torch.stack(rows).numpy())
"""


def test_orientation(tmp_path):
    """From a state file, our logits are those of the package rwkv; the transposed state gives clearly others."""
    checkpoint = synthetic(SHAPE)
    pth.write(checkpoint.tensors, tmp_path / "m.pth")
    by_hand(tmp_path / "s.pth")
    files = [str(tmp_path / name) for name in ("m", "s.pth", "logits.npy")]
    command = [sys.executable, "-c", RWKV_PACKAGE, *files, ",".join(map(str, TOKENS))]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    theirs = torch.from_numpy(np.load(tmp_path / "logits.npy")).double()

    def divergence(state):
        ours, _ = Naive(checkpoint).forward(TOKENS, state)
        return float((ours - theirs).abs().max() / theirs.abs().max()), float(
            kl_div(log_softmax(ours, -1), log_softmax(theirs, -1), log_target=True, reduction="none").sum(-1).max()
        )

    state = load_state(tmp_path / "s.pth", SHAPE)
    error, kl = divergence(state)
    assert error <= 2e-5
    assert kl <= 1e-8
    error, kl = divergence(State(state.att_shift, state.wkv.transpose(2, 3), state.ffn_shift))
    assert error >= 0.1
    assert kl >= 0.1


def test_shifts_are_not_lost_silently(tmp_path):
    """A state with time shifts is saved only where dropping them is asked for."""
    state = State.random(SHAPE, 1, torch.float32)
    with pytest.raises(CheckpointError, match="token shifts are not zero"):
        save_state(state, tmp_path / "s.pth")
    assert not list(tmp_path.iterdir())
    save_state(state, tmp_path / "s.pth", shifts=Shifts.DROP)
    assert torch.equal(load_state(tmp_path / "s.pth", SHAPE).wkv, state.wkv)


def test_nothing_is_overwritten(tmp_path):
    """An existing file stays, unless replacing it is asked for."""
    (tmp_path / "s.pth").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already"):
        save_state(tuned(), tmp_path / "s.pth")
    assert (tmp_path / "s.pth").read_text() == "mine"
    save_state(tuned(), tmp_path / "s.pth", force=True)
    load_state(tmp_path / "s.pth", SHAPE)


def changed(**changes):
    """State tensors, some of them replaced."""
    return {f"blocks.{i}.att.time_state": torch.zeros(2, 64, 64) for i in range(2)} | changes


FIRST = "blocks.0.att.time_state"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (dict(synthetic(SHAPE).tensors), r"holds emb\.weight, .* this is a checkpoint, not a state"),
        ({FIRST: torch.zeros(2, 64, 64)}, "att.time_state of 1 layers up to number 0, but the model has layers 0 to 1"),
        (changed(**{"blocks.2.att.time_state": torch.zeros(2, 64, 64)}), "att.time_state of 3 layers"),
        (changed(**{"blocks.999999999.att.time_state": torch.zeros(2, 64, 64)}), "up to number 999999999"),
        (changed(**{FIRST: torch.zeros(4, 32, 32)}), r"shape \(4, 32, 32\), but the model needs \(2, 64, 64\)"),
        (changed(**{FIRST: torch.zeros(2, 64, 64).long()}), "holds 'torch.LongStorage'"),
        (changed(**{FIRST: torch.full((2, 64, 64), float("inf"))}), "holds NaN or Inf"),
        (changed(**{FIRST: torch.zeros(1, 1, 1).expand(2, 64, 64)}), "repeats numbers"),
        (changed(**{"blocks.00.att.time_state": torch.zeros(2, 64, 64)}), "blocks.N.att.time_state alone"),
        ({}, "att.time_state of 0 layers"),
    ],
)
def test_other_files(tmp_path, tensors, message):
    """What is no state of this model is refused, with what it is."""
    torch.save(tensors, tmp_path / "s.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        load_state(tmp_path / "s.pth", SHAPE)
    assert str(tmp_path / "s.pth") in str(error.value)


@pytest.mark.parametrize("content", [b"", b"text" * 100, b"PK\x03\x04"], ids=["empty", "text", "zip"])
def test_no_files_of_tensors(tmp_path, content):
    """Broken files are refused as broken checkpoints are."""
    (tmp_path / "s.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"s\.pth"):
        load_state(tmp_path / "s.pth", SHAPE)
