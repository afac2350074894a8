"""Examining checkpoints: the numbers are right, and each doubt has its file."""

import math

import pytest
import torch

from reference.checkpoint import Container
from reference.convert import convert
from reference.examine import examine
from reference.formats import pth
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic

SHAPE = ModelShape(
    n_layer=2, n_embd=128, head_size=64, n_ffn=128, n_vocab=10, ranks=LoraRanks(decay=4, rate=5, value=6, gate=7)
)
W0 = "blocks.1.att.w0"


def saved(path, shape=SHAPE, **changes):
    """A .pth file of a synthetic checkpoint with some tensors changed."""
    pth.write(dict(synthetic(shape).tensors) | changes, path)
    return path


def with_value(name, value):
    """A tensor of the synthetic checkpoint with one number replaced."""
    tensor = synthetic(SHAPE).tensors[name].clone()
    tensor.view(-1)[3] = value
    return {name: tensor}


def test_nothing_wrong(tmp_path):
    """A sound checkpoint raises no doubt."""
    assert examine(saved(tmp_path / "m.pth")).warnings == ()


def test_trained_checkpoint_of_rwkv_cpp(shared_data):
    """A published file: its sizes are counted right, and its one oddity is seen."""
    findings = examine(shared_data / "tiny_rwkv7_834k" / "tiny-rwkv-7v0-834K-FP32.bin")
    assert findings.container is Container.GGMF
    assert findings.parameters == 829_888
    assert findings.dtypes == {"float32": 399}
    assert findings.warnings == ("one value throughout, as before training: ln_out.weight",)


def test_values(tmp_path):
    """Ranges are over all layers of a kind: smallest, largest, mean absolute value, share of zeros."""
    changes = {
        "blocks.0.att.k_a": torch.cat([torch.zeros(32), torch.full((96,), 2.0)]),
        W0: synthetic(SHAPE).tensors[W0],
        "blocks.1.att.k_a": torch.cat([torch.full((64,), -1.0), torch.full((64,), 3.0)]),
    }
    findings = examine(saved(tmp_path / "m.pth", **changes))
    (values,) = (values for values in findings.values if values.kind == "blocks.N.att.k_a")
    assert (values.tensors, values.shape, values.dtypes) == (2, (128,), ("float32",))
    assert (values.minimum, values.maximum) == (-1.0, 3.0)
    assert values.mean_absolute == pytest.approx((96 * 2 + 64 * 1 + 64 * 3) / 256)
    assert values.zeros == 32 / 256
    assert sum(values.tensors for values in findings.values) == len(SHAPE.tensors())
    assert findings.parameters == sum(math.prod(size) for size in SHAPE.tensors().values())


SAME = {"blocks.1.ffn.key.weight": synthetic(SHAPE).tensors["blocks.0.ffn.key.weight"]}
SPARSE = synthetic(SHAPE).tensors["blocks.1.ffn.key.weight"] * (torch.arange(128) % 3 == 0)
HALF = {W0: synthetic(SHAPE).tensors[W0].half()}
NEGATIVE = {"ln_out.weight": -synthetic(SHAPE).tensors["ln_out.weight"]}


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (with_value(W0, float("nan")), f"NaN or Inf, with which no model computes: {W0}"),
        (with_value(W0, float("-inf")), f"NaN or Inf, with which no model computes: {W0}"),
        (with_value("emb.weight", -70_000.0), "values beyond float16's largest, 65504: emb.weight"),
        ({"emb.weight": torch.zeros(10, 128)}, "all zero, as before training: emb.weight"),
        ({"ln_out.weight": torch.ones(128)}, "one value throughout, as before training: ln_out.weight"),
        ({"blocks.1.ffn.key.weight": SPARSE}, "more than half zeros: blocks.1.ffn.key.weight"),
        (with_value(W0, -17.0), f"decays below -16: channels that never forget: {W0}"),
        (with_value(W0, 17.0), f"decays above 16: channels stuck at the fastest decay: {W0}"),
        (NEGATIVE, "negative layer norm weights: ln_out.weight"),
        (SAME, "the same numbers in several layers: blocks.0.ffn.key.weight, blocks.1.ffn.key.weight"),
        (HALF, "mixed dtypes: float16, float32"),
        ({"blocks.0.att.v0": torch.rand(128)}, "tensors that no model uses: blocks.0.att.v0"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_doubts(tmp_path, changes, warning):
    """Each oddity is named, with its tensors, and nothing else is."""
    assert examine(saved(tmp_path / "m.pth", **changes)).warnings == (warning,)


def test_zero_biases_are_no_oddity(tmp_path):
    """A bias may be zero."""
    assert examine(saved(tmp_path / "m.pth", **{"ln_out.bias": torch.zeros(128)})).warnings == ()


def test_long_lists_are_cut(tmp_path):
    """Five tensors are named, the others counted."""
    changes = {name: torch.zeros(size) for name, size in SHAPE.tensors().items() if ".att.x_" in name}
    (warning,) = examine(saved(tmp_path / "m.pth", **changes)).warnings
    assert warning.count("att.x_") == 5
    assert warning.endswith("and 7 more")


def test_all_not_finite(tmp_path):
    """A tensor without one finite number is no reason to fall over."""
    findings = examine(saved(tmp_path / "m.pth", **{"ln_out.bias": torch.full((128,), float("nan"))}))
    (values,) = (values for values in findings.values if values.kind == "ln_out.bias")
    assert math.isnan(values.minimum)
    assert math.isnan(values.mean_absolute)
    assert findings.warnings == ("NaN or Inf, with which no model computes: ln_out.bias",)


def test_head_size(tmp_path):
    """Another head size is unusual everywhere, and computed otherwise by flash-linear-attention."""
    shape = ModelShape(n_layer=1, n_embd=64, head_size=32, n_ffn=64, n_vocab=10, ranks=SHAPE.ranks)
    source = saved(tmp_path / "m.pth", shape)
    assert examine(source).warnings == ("head size 32: releases have 64",)
    convert(source, tmp_path / "m")
    first, second = examine(tmp_path / "m").warnings
    assert first == "head size 32: releases have 64"
    assert "eps 32e-5" in second
