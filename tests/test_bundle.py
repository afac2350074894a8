"""Bundles: what is in one, and a self-test that needs the runtime's worker alone and can fail."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from compile.compiler import compile_graph
from compile.host_embedding import host_table
from harness.bundle.make import RUNTIME, Request, make_bundle, with_decode
from harness.bundle.verdicts import BundleError, Subject, newest_verdicts, read_verdicts
from harness.cases import parse_case
from harness.checkpoints import DEFAULT, open_model
from harness.jobs import job_of
from harness.own.options import Own
from harness.paths import cache_folder
from runtime.binding import Dtype
from runtime.engine import Engine
from runtime.nets import from_floats
from runtime.session import Session
from tests.fake_libsophon.build import FakeModel, fake_board, write_bmodel
from tests.gate_runs import DECODE, PREFILL, MadeRun, a_record, failed

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
    return made(tmp_path, FakeModel())


def made(tmp_path, model):
    """The same of any fake model; where its nets take rows of the embedding, with a file of these."""
    folder = tmp_path / "bundle"
    (folder / "runtime").mkdir(parents=True)
    for name in RUNTIME:
        shutil.copy(ROOT / "runtime" / f"{name}.py", folder / "runtime")
    shutil.copy(ROOT / "harness" / "bundle" / "selftest.py", folder)
    tokens, table = [1, 2, 3, 4, 5, 6], None
    write_bmodel(folder / "a.bmodel", model.whole(), model.whole(4))
    board = fake_board(tmp_path)
    if model.rows_dtype is not None:
        table = np.arange(model.vocabulary, dtype=np.float32)[:, None] % 251 * np.ones(model.C, np.float32)
        (folder / "embedding.f16").write_bytes(from_floats(table, model.rows_dtype))
    with Engine.open(board, [folder / "a.bmodel"], embedding=table) as engine, Session(engine) as session:
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
                "embedding": None if table is None else "embedding.f16",
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


def test_rows_of_the_embedding(tmp_path):
    """They come from a file of the bundle: the right ones pass, others do not, and a change of the file is told."""
    folder, libraries = made(tmp_path, FakeModel(rows_dtype=Dtype.F16))
    assert selftest(folder, "--libraries", libraries) == (0, "PASSED: fake, 1 prompts, on device 0\n")
    path = folder / "embedding.f16"
    rows = np.frombuffer(path.read_bytes(), "<f2").reshape(-1, FakeModel().C)
    path.write_bytes(np.roll(rows, 1, axis=0).tobytes())
    status, words = selftest(folder, "--libraries", libraries)
    assert status == 2
    assert "embedding.f16: SHA-256 should be" in words
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    changed(folder, lambda bundle: bundle["sha256"].__setitem__("embedding.f16", expected))
    status, words = selftest(folder, "--libraries", libraries)
    assert status == 1
    assert "prompt 0: " in words


# ---- verdicts

SUBJECT = Subject(
    checkpoint=SimpleNamespace(name="tiny", sha256="s0"),
    toolchain=SimpleNamespace(identity="i0"),
    cases=(DECODE, PREFILL),
)
BMODELS = {case: f"b-{case}" for case in SUBJECT.cases}
HARD = a_record(DECODE, "hard_weights", bmodel_sha256="of a harder model")
BOTH = a_record(DECODE), failed(PREFILL), HARD, a_record("decode-W4F16-chunk")


def test_verdicts_of_a_run(tmp_path):
    """Every record of the cases, of harder models too, and no other; what did not pass is counted."""
    MadeRun(BOTH).write(tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / "records.jsonl"):
        found = read_verdicts(path, SUBJECT)
        found.refuse_others(BMODELS)
        assert [(one["case"], one["check"], one["outcome"]) for one in found.told()] == [
            (DECODE, "from_zero_state", "passed"),
            (PREFILL, "from_zero_state", "failed"),
            (DECODE, "hard_weights", "passed"),
        ]
        assert found.words == "3 checks, 1 not passed, by run r0 on the BM1684X simulator (cmodel)"


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (MadeRun(BOTH, complete=False), "was interrupted; let it come to its end: pytest suites/ --resume"),
        (MadeRun(BOTH, {"checkpoint": {"sha256": "s1"}}), "judged the checkpoint tiny, sha256 s1, but should"),
        (MadeRun(BOTH, {"toolchain": {"identity": "i1"}}), "judged bmodels of i1, but should have judged those of i0"),
        (MadeRun(BOTH[:1]), f"has no record of {PREFILL}; it judged {DECODE}"),
        (
            MadeRun((a_record(PREFILL), a_record(DECODE, bmodel_sha256="older"), HARD)),
            f"judged other bmodels of {DECODE}: of a harder model, older, but should have judged b-{DECODE}",
        ),
        (MadeRun((a_record(PREFILL), a_record(DECODE, bmodel_sha256=""))), f"bmodels of {DECODE}: none, but"),
    ],
)
def test_a_run_of_something_else(tmp_path, run, says):
    """It is refused by name, and never taken unasked."""
    run.write(tmp_path / "run")
    with pytest.raises(BundleError, match=re.escape(says)):
        read_verdicts(tmp_path / "run", SUBJECT).refuse_others(BMODELS)
    assert newest_verdicts(tmp_path, SUBJECT, BMODELS) is None


def test_the_latest_run_is_taken(tmp_path):
    """Of those that judged the same bmodels; what cannot be read, and what is not there, is passed over."""
    for name in ("20260101T0-cmodel", "20260102T0-cmodel"):
        MadeRun(BOTH, {"id": name}).write(tmp_path / name)
    MadeRun(BOTH, {"id": "other", "checkpoint": {"sha256": "s1"}}).write(tmp_path / "20260103T0-cmodel")
    (tmp_path / "20260104T0-cmodel").mkdir()
    (tmp_path / "20260104T0-cmodel" / "records.jsonl").write_text("no record\n")
    assert newest_verdicts(tmp_path, SUBJECT, BMODELS).file.run.id == "20260102T0-cmodel"
    assert newest_verdicts(tmp_path / "nowhere", SUBJECT, BMODELS) is None


def test_no_parts(tmp_path):
    """A map has no words for what passes between the nets of parts: such a case is refused before it is compiled."""
    request = Request(with_decode(parse_case(f"{PREFILL}+blocks")), SimpleNamespace(), SimpleNamespace())
    with pytest.raises(BundleError, match=re.escape(f"{PREFILL}+blocks is compiled in parts")):
        make_bundle(request, tmp_path / "out", compiled=None)


# ---- with the compiler


@pytest.mark.toolchain
def test_a_bundle_of_the_shipped_model(rwkv_bmodels, toolchain, tmp_path):
    """Decode and prefill, whose map the suites read; every file is in the list of hashes; it is never written over.

    The verdicts are those of a run that judged these bmodels; where there is none, it says what to do.
    """
    cases, cache = with_decode(parse_case("prefill_16-F16-chunk")), cache_folder()
    request = Request(cases, rwkv_bmodels.model, toolchain, runs=tmp_path / "runs")
    out, said = tmp_path / "bundle", []

    def compiled(case):
        return compile_graph(job_of(case, rwkv_bmodels.model, toolchain), cache)

    MadeRun(
        tuple(a_record(case.id, bmodel_sha256=compiled(case).result.bmodel_sha256) for case in cases),
        {
            "toolchain": {"identity": toolchain.identity},
            "checkpoint": {"sha256": rwkv_bmodels.model.checkpoint.sha256},
        },
    ).write(tmp_path / "runs" / "r0")
    make_bundle(request, out, compiled, say=said.append)
    assert said == ["verdicts: 2 checks, 0 not passed, by run r0 on the BM1684X simulator (cmodel)"]
    assert said[0] in (out / "README.md").read_text()
    bundle = json.loads((out / "bundle.json").read_text())
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert set(bundle["sha256"]) == files - {"bundle.json"}
    assert bundle["chunk_lengths"] == [1, 16]
    assert all(len(prompt["greedy"]) > 0 for prompt in bundle["prompts"])
    assert [one["case"] for one in bundle["verdicts"]] == [case.id for case in cases]
    port = Own((out / "decode.bmodel", out / "prefill_16.bmodel"), out / "io.toml").open(DEFAULT, None)
    assert [case.id for case in port.grid.cases] == ["decode-F16-chunk_bundle", "prefill_16-F16-chunk_bundle"]
    with pytest.raises(BundleError, match="should not be there yet"):
        make_bundle(request, out, compiled)
    make_bundle(dataclasses.replace(request, runs=tmp_path / "nowhere"), tmp_path / "other", compiled)
    words = f"- verdicts: none: no finished run in {tmp_path / 'nowhere'} judged these bmodels; pytest suites/ with"
    assert words in (tmp_path / "other" / "README.md").read_text()


@pytest.mark.toolchain
def test_a_bundle_with_the_embedding_on_the_host(toolchain, tmp_path):
    """The table lies beside the bmodels as the nets take it, with its hash, and the map says so to the suites."""
    cases, model, out = with_decode(parse_case("prefill_16-F16-chunk+host_embedding")), open_model(None), tmp_path / "b"
    request = Request(cases, model, toolchain, runs=tmp_path / "runs")
    make_bundle(request, out, lambda case: compile_graph(job_of(case, model, toolchain), cache_folder()))
    table = host_table(model.arrays)
    bundle = json.loads((out / "bundle.json").read_text())
    assert (out / "embedding.f32").read_bytes() == table.astype("<f4").tobytes()
    assert "embedding.f32" in bundle["sha256"]
    assert [net["embedding"] for net in bundle["contract"]["nets"]] == ["embedding.f32"] * 2
    assert "`embedding.f32`" in (out / "README.md").read_text()
    port = Own((out / "decode.bmodel", out / "prefill_16.bmodel"), out / "io.toml").open(DEFAULT, None)
    assert [case.id for case in port.grid.cases] == ["decode-F16-chunk_bundle", "prefill_16-F16-chunk_bundle"]
    np.testing.assert_array_equal(port.embedding, table)


@pytest.mark.long
@pytest.mark.toolchain
@pytest.mark.parametrize(
    "case", ["prefill_16-F16-chunk", "prefill_16-F16-chunk+host_embedding", "prefill_16-F16-chunk+stacked_state"]
)
def test_the_shipped_model_passes_its_self_test(toolchain, tmp_path, case):
    """On the simulator, in a clean process."""
    out = tmp_path / "bundle"
    command = [Path(sys.executable).with_name("rwkv-tpu"), "bundle", case, "--out", out]
    subprocess.run(command, check=True, cwd=ROOT)
    status, words = selftest(out, "--simulator", "--libraries", toolchain.libraries)
    assert status == 0, words
