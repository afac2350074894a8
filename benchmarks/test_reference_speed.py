"""The fast reference beside the package rwkv, on a synthetic checkpoint of 0.1B size and real text."""

import json
import os
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from reference.fast import Fast
from reference.shape import LoraRanks, ModelShape
from reference.synthetic import synthetic
from tokenizer.codec import Codec

SIZE_01B = ModelShape(
    n_layer=12,
    n_embd=768,
    head_size=64,
    n_ffn=3072,
    n_vocab=65_536,
    ranks=LoraRanks(decay=64, rate=64, value=32, gate=128),
)
N_DOCUMENTS = 200


@pytest.fixture(scope="module")
def checkpoint():
    """Twelve layers of width 768 and the World vocabulary."""
    return synthetic(SIZE_01B)


@pytest.fixture(scope="module")
def ours(checkpoint):
    """The fast reference in float32."""
    return Fast(checkpoint)


@pytest.fixture(scope="module")
def theirs(checkpoint, tmp_path_factory):
    """The package in float32, as its page says to use it on a processor."""
    path = tmp_path_factory.mktemp("rwkv") / "model.pth"
    torch.save(dict(checkpoint.tensors), path)
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        from rwkv.model import RWKV  # noqa: PLC0415 - reads the environment set above

        engine = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
    path.unlink()
    return engine


@pytest.fixture(scope="module")
def texts(shared_data):
    """The first documents of LAMBADA: prompt and continuation."""
    lines = (shared_data / "lambada" / "lambada_test.jsonl").read_text().splitlines()[:N_DOCUMENTS]
    split = [json.loads(line)["text"].rsplit(" ", 1) for line in lines]
    return [([0, *Codec.WORLD.encode(context)], Codec.WORLD.encode(" " + word)) for context, word in split]


def score_with_package(engine, texts):
    """One sequence call a document, then the log-probabilities of its last tokens."""
    scores = []
    for prompt, continuation in texts:
        logits, _ = engine.forward(prompt + continuation[:-1], None, full_output=True)
        log_probs = torch.log_softmax(logits[-len(continuation) :], dim=-1)
        scores.append(log_probs[range(len(continuation)), continuation])
    return scores


def test_score_lambada_float32(compare, ours, theirs, texts):
    """Scoring documents in float32: at least twice as fast, and the same numbers."""
    for score, want in zip(ours.score(texts[:8]), score_with_package(theirs, texts[:8]), strict=True):
        assert float((score.log_probs - want).abs().max()) < 1e-3
    ratio = compare(lambda: ours.score(texts), lambda: score_with_package(theirs, texts))
    assert ratio.value >= 2.0, ratio


def test_score_lambada_bfloat16(compare, checkpoint, ours, texts):
    """In bfloat16 at least 1.5 times as fast as in float32, where the processor multiplies bfloat16."""
    if "avx512_bf16" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no bfloat16 instructions")
    bfloat16 = Fast(checkpoint, torch.bfloat16)
    ratio = compare(lambda: bfloat16.score(texts), lambda: ours.score(texts))
    assert ratio.value >= 1.5, ratio


def test_decode_one_token(compare, ours, theirs):
    """One token after a state, fifty times: at least as fast."""
    _, our_state = ours.forward([5, 6, 7])
    _, their_state = theirs.forward([5, 6, 7], None)

    def decode_ours():
        state = our_state
        for token in range(50):
            _, state = ours.forward([token], state)

    def decode_theirs():
        state = list(their_state)
        for token in range(50):
            _, state = theirs.forward([token], state)

    ratio = compare(decode_ours, decode_theirs)
    assert ratio.value >= 1.0, ratio
