"""Decode and prefill in parts, in one bmodel: what they share, and the same numbers as the whole graphs."""

import json
import sys

import numpy as np
import pytest
import torch

from compile.compiler import RefusedError
from compile.device_memory import DeviceMemoryError, parse_info, parse_weights
from compile.spec import Quantization
from harness.cases import parse_case
from harness.checkpoints import open_model
from harness.cli import main
from harness.device.place import open_place
from harness.jobs import job_of, part_jobs
from harness.limits import load_limits
from harness.metrics import logits_distance, state_nmse
from harness.one_bmodel import Sharing, one_bmodel, sharing
from harness.paths import cache_folder
from harness.prompts import prompt
from harness.targets.bmodel import BmodelTarget
from harness.weights import weights_of_model
from reference.state import State

CASES = [parse_case(f"{graph}-F16-chunk+blocks") for graph in ("decode", "prefill_16")]
INFO = """
kernel_module size: 5598792

device mem size: 2646656 (weight: 2408448, instruct: 103040, runtime: 135168)
host mem size: 0 (weight: 0, runtime: 0)
"""
WEIGHTS = """bmodel is 4k aligned
net 0 : "embed_1", stage:0
-------------------------------
tpu.Gather.source : [0x0, 0x11000)
==========================================
net 1 : "head_1", stage:0
-------------------------------
tpu.LayerNorm.weight : [0x0, 0x1000)
tpu.MatMul.weight : [0x2000, 0x13000)
"""


def test_what_model_tool_says():
    """The line of --info and the ranges of --weight are read; anything else is named."""
    found = parse_info(INFO, "m")
    assert (found.coefficients, found.instructions, found.runtime) == (2408448, 103040, 135168)
    assert found.total == 2646656
    assert parse_weights(WEIGHTS, "m") == {"embed_1": 0x11000, "head_1": 0x13000}
    for parse, text, words in (
        (parse_info, "Usage:\n  model_tool", "m: no line 'device mem size"),
        (parse_weights, "", "m: no net"),
        (parse_weights, 'net 0 : "a", stage:0\n---', "m: no coefficients of net a"),
    ):
        with pytest.raises(DeviceMemoryError, match=words):
            parse(text, "m")


def test_counts():
    """What is shared is what is saved; duplicated, what is there beyond the largest graph."""
    found = Sharing(apart=100, together=90, largest=60)
    assert (found.shared, found.duplicated) == (10, 30)


def test_no_parts_of_a_loop(toolchain):
    """The loop has no graphs of its parts, and a case in parts is no one job: both are refused by name."""
    weights = weights_of_model(open_model(None))
    with pytest.raises(RefusedError, match="variant loop is not written in parts"):
        part_jobs(parse_case("decode-F16-loop+blocks"), weights, toolchain)
    with pytest.raises(RefusedError, match="is compiled in parts"):
        job_of(CASES[0], weights, toolchain)


@pytest.mark.long
@pytest.mark.toolchain
def test_the_same_numbers(toolchain, rwkv_bmodels):
    """On the simulator: prefill, then decode, from a state that is not zero, within the F16 caps of the whole graphs.

    Of whole graphs in one bmodel, bit for bit. And embedding and head of parts are shared: the whole of their
    coefficients is there once.
    """
    model = rwkv_bmodels.model
    weights = weights_of_model(model)
    wholes = [parse_case(f"{graph}-F16-chunk") for graph in ("decode", "prefill_16")]
    bmodel, both = (one_bmodel(cases, weights, toolchain, cache_folder()) for cases in (CASES, wholes))
    memory, shared = sharing(bmodel.path, CASES, weights.shape.n_layer, toolchain)
    assert shared.shared >= 2 * 2 * model.arrays["emb.weight"].size
    assert 0 < shared.duplicated < shared.largest
    assert memory.coefficients == shared.together
    tokens = prompt(model, 20)
    start = State.random(model.checkpoint.shape, seed=3, dtype=torch.float32).arrays()
    outputs = []
    for paths, nets in (
        ([rwkv_bmodels.prefill, rwkv_bmodels.decode], ("prefill_16", "decode")),
        ([both.path], ("prefill_16", "decode")),
        ([bmodel.path], tuple(case.net for case in reversed(CASES))),
    ):
        with open_place("cmodel", None, toolchain.libraries).open(paths) as engine:
            first = BmodelTarget(engine, nets[0]).run(tokens[:16], start)
            rest = BmodelTarget(engine, nets[1]).run(tokens[16:], first.state)
            outputs.append((np.concatenate([first.logits, rest.logits]), rest.state))
    (want, want_state), (same, same_state), (got, got_state) = outputs
    for expected, found in zip([want, *want_state], [same, *same_state], strict=True):
        np.testing.assert_array_equal(expected, found)
    limits = load_limits()[0][Quantization.F16]
    assert limits.breaches(logits_distance(want, got, near_tie_nats=limits.near_tie_nats)) == []
    assert limits.state_breaches(state_nmse(want_state, got_state)) == []


@pytest.mark.toolchain
def test_command(toolchain, monkeypatch, capsys, tmp_path):
    """The command writes the bmodel, and says what is shared; two nets of one name are refused before any compile."""
    out = tmp_path / "m.bmodel"
    asked = [
        "rwkv-tpu",
        "join",
        "decode-F16-chunk+blocks",
        "--toolchain",
        toolchain.version,
        "--out",
        str(out),
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    told = json.loads(capsys.readouterr().out)
    assert out.stat().st_size == told["compiled"]["bmodel_bytes"]
    assert told["shared_bytes"] == told["duplicated_bytes"] == 0
    monkeypatch.setattr(sys, "argv", [*asked, "prefill_16-F16-chunk+blocks", "prefill_all_16-F16-chunk+blocks"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
