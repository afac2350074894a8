"""Bundles: what is in one, and a self-test that needs the runtime's worker alone and can fail."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compile.compiler import compile_graph
from harness.bundle.make import RUNTIME, BundleError, Request, make_bundle, with_decode
from harness.cases import parse_case
from harness.checkpoints import DEFAULT
from harness.jobs import job_of
from harness.own.options import Own
from harness.paths import cache_folder
from runtime.engine import Engine
from runtime.session import Session
from tests.fake_libsophon.build import FakeModel, fake_board, write_bmodel

ROOT = Path(__file__).parent.parent
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


def selftest(folder, *arguments):
    """Exit status and words of a bundle's self-test in a clean process, from another folder."""
    command = [PYTHON, "-I", str(folder / "selftest.py"), *map(str, arguments)]
    clean = {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=clean, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def fake(tmp_path):
    """A bundle of nets that the fake libraries compute, and the folder of these."""
    folder = tmp_path / "bundle"
    (folder / "runtime").mkdir(parents=True)
    for name in RUNTIME:
        shutil.copy(ROOT / "runtime" / f"{name}.py", folder / "runtime")
    shutil.copy(ROOT / "harness" / "bundle" / "selftest.py", folder)
    model, tokens = FakeModel(), [1, 2, 3, 4, 5, 6]
    write_bmodel(folder / "a.bmodel", model.whole(), model.whole(4))
    board = fake_board(tmp_path)
    with Engine.open(board, [folder / "a.bmodel"]) as engine, Session(engine) as session:
        logits = session.feed(tokens)
        greedy = [int(logits.argmax())]
        greedy.append(int(session.feed(greedy).argmax()))
        nets = engine.nets
    (folder / "logits-0.f32").write_bytes(logits.astype("<f4").tobytes())
    files = [path for path in folder.rglob("*") if path.is_file()]
    contract = {
        "bmodels": ["a.bmodel"],
        "nets": [
            {
                "name": net.name,
                "tokens": net.tokens,
                "logits_dtype": int(net.logits_dtype),
                "edges": dict(net.edges),
                "parts": [list(part) for part in net.parts],
            }
            for net in nets
        ],
        "state_bytes": [state.size_bytes for state in nets[0].states],
        "vocabulary": model.vocabulary,
        "kl_worst_nats": 1e-2,
    }
    bundle = {
        "case": "fake",
        "contract": contract,
        "prompts": [{"tokens": tokens, "logits": "logits-0.f32", "greedy": greedy}],
        "sha256": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    (folder / "bundle.json").write_text(json.dumps(bundle))
    return folder, board.folder


def changed(folder, change):
    """Rewrite the bundle's description."""
    path = folder / "bundle.json"
    bundle = json.loads(path.read_text())
    change(bundle)
    path.write_text(json.dumps(bundle))


def test_it_passes(fake):
    """The right numbers, by another Python without any package."""
    folder, libraries = fake
    assert selftest(folder, "--libraries", libraries) == (0, "PASSED: fake, 1 prompts, on device 0\n")


def test_a_damaged_file(fake):
    """One byte of the bmodel is another."""
    folder, libraries = fake
    path = folder / "a.bmodel"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    status, words = selftest(folder, "--libraries", libraries)
    assert status == 2
    assert "a.bmodel: SHA-256 should be" in words


def test_other_tokens(fake):
    """Greedy decoding goes another way than it should."""
    folder, libraries = fake
    changed(folder, lambda bundle: bundle["prompts"][0]["greedy"].__setitem__(1, 0))
    status, words = selftest(folder, "--libraries", libraries)
    assert status == 1
    assert "prompt 0: greedy tokens" in words


def test_other_logits(fake):
    """The tokens are right, but not the chances."""
    folder, libraries = fake
    path = folder / "logits-0.f32"
    logits = np.frombuffer(path.read_bytes(), "<f4")
    path.write_bytes((-logits).astype("<f4").tobytes())
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    changed(folder, lambda bundle: bundle["sha256"].__setitem__("logits-0.f32", expected))
    status, words = selftest(folder, "--libraries", libraries)
    assert status == 1
    assert "kl_worst_nats=" in words


def test_it_cannot_be_run(fake, tmp_path):
    """Without libraries nothing is said of the numbers."""
    status, words = selftest(fake[0], "--libraries", tmp_path / "nowhere")
    assert status == 3
    assert "NOT RUN: LibraryMissing: not found" in words


@pytest.mark.toolchain
def test_a_bundle_of_the_shipped_model(rwkv_bmodels, toolchain, tmp_path):
    """Decode and prefill, whose map the suites read; every file is in the list of hashes; it is never written over."""
    cases, cache = with_decode(parse_case("prefill_16-F16-chunk")), cache_folder()
    request = Request(cases, rwkv_bmodels.model, toolchain)
    out = tmp_path / "bundle"

    def compiled(case):
        return compile_graph(job_of(case, rwkv_bmodels.model, toolchain), cache)

    make_bundle(request, out, compiled)
    bundle = json.loads((out / "bundle.json").read_text())
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert set(bundle["sha256"]) == files - {"bundle.json"}
    assert bundle["chunk_lengths"] == [1, 16]
    assert all(len(prompt["greedy"]) > 0 for prompt in bundle["prompts"])
    port = Own((out / "decode.bmodel", out / "prefill_16.bmodel"), out / "io.toml").open(DEFAULT, None)
    assert [case.id for case in port.grid.cases] == ["decode-F16-chunk_bundle", "prefill_16-F16-chunk_bundle"]
    with pytest.raises(BundleError, match="should not be there yet"):
        make_bundle(request, out, compiled)


@pytest.mark.long
@pytest.mark.toolchain
def test_the_shipped_model_passes_its_self_test(toolchain, tmp_path):
    """On the simulator, in a clean process."""
    out = tmp_path / "bundle"
    command = [Path(sys.executable).with_name("rwkv-tpu"), "bundle", "prefill_16-F16-chunk", "--out", out]
    subprocess.run(command, check=True, cwd=ROOT)
    status, words = selftest(out, "--simulator", "--libraries", toolchain.libraries)
    assert status == 0, words
