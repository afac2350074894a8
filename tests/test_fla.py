"""The exported folder in flash-linear-attention itself: its model loads it, and its plain-torch code computes as ours.

Needs the extra ``fla``: ``pip install -e .[fla]`` (with triton, though nothing here runs on it).
"""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reference.checkpoint import read
from reference.convert import convert
from reference.formats import pth
from reference.naive import Naive
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic

HINT = "needs the extra 'fla': pip install -e .[fla]"
layer = pytest.importorskip("fla.layers.rwkv7", reason=HINT)
modeling = pytest.importorskip("fla.models.rwkv7.modeling_rwkv7", reason=HINT)
fused_addcmul = pytest.importorskip("fla.ops.rwkv7.fused_addcmul", reason=HINT)
fused_k_update = pytest.importorskip("fla.ops.rwkv7.fused_k_update", reason=HINT)
gate_output_correction = pytest.importorskip("fla.ops.rwkv7.gate_output_correction", reason=HINT)
channel_mixing = pytest.importorskip("fla.ops.rwkv7.channel_mixing", reason=HINT)
dplr = pytest.importorskip("fla.ops.generalized_delta_rule.dplr.naive", reason=HINT)
token_shift = pytest.importorskip("fla.modules.token_shift", reason=HINT)

CHECKPOINT = synthetic(
    ModelShape(
        n_layer=2, n_embd=128, head_size=64, n_ffn=320, n_vocab=97, ranks=LoraRanks(decay=8, rate=10, value=12, gate=14)
    )
)


@pytest.fixture
def exported(tmp_path) -> Path:
    """Our export of a synthetic checkpoint."""
    pth.write(CHECKPOINT.tensors, tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "exported")
    return tmp_path / "exported"


@pytest.fixture
def model(exported, monkeypatch):
    """Their model with our weights, and their plain-torch functions in place of their kernels."""

    def recurrence(r, w, k, v, kk, a, **_):
        # Theirs has heads before time and scales what it reads out.
        r, w, k, v, kk, a = (x.transpose(1, 2) for x in (r, w, k, v, kk, a))
        y, state = dplr.dplr_recurrence(r * r.shape[-1] ** 0.5, k, v, -kk, kk * a, w)
        return y.transpose(1, 2), state

    for module in (layer, modeling):
        monkeypatch.setattr(module, "token_shift", lambda x, *_, **__: (token_shift.token_shift_ref(x), None))
    monkeypatch.setattr(layer, "fused_addcmul_rwkv7", fused_addcmul.torch_addcmul_rwkv7)
    monkeypatch.setattr(layer, "fused_k_rwkv7", fused_k_update.k_update_ref)
    monkeypatch.setattr(layer, "gate_output_correction", gate_output_correction.gate_output_correction_ref)
    monkeypatch.setattr(layer, "fused_mul_recurrent_rwkv7", recurrence)
    config = modeling.RWKV7Config.from_pretrained(exported, fuse_norm=False, fuse_cross_entropy=False, use_cache=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = modeling.RWKV7ForCausalLM.from_pretrained(exported, config=config).eval()
    for block in loaded.model.layers:
        block.ffn.act_fn = channel_mixing.rwkv_relu_and_square_torch
    return loaded


def test_their_names(model):
    """Their model has exactly the tensors of our export, in the same shapes and with the same numbers."""
    ours = load_file(Path(model.name_or_path) / "model.safetensors")
    theirs = model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_their_logits(model):
    """Their plain-torch code, on our export, gives the logits of our reference on the checkpoint."""
    tokens = [5, 96, 0, 0, 17, 42, 42, 8, 1]
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0]
    ours, _ = Naive(CHECKPOINT).forward(tokens)
    assert float((theirs - ours).abs().max()) <= 2e-5 * float(ours.abs().max())


def test_their_export(model, tmp_path):
    """What their model saves is read with the tensors that it was given."""
    model.save_pretrained(tmp_path / "theirs")
    found = read(tmp_path / "theirs")
    assert found.shape == CHECKPOINT.shape
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in CHECKPOINT.tensors.items())
