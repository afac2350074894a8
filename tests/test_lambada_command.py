"""The command: naive and torch agree, kills and Ctrl-C lose nothing, and two targets are told apart or not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.checkpoints import open_model
from harness.cli import main
from harness.lambada import documents
from harness.lambada.protocol import to_text
from harness.lambada.results import Result, read
from harness.lambada.statistics import Verdict, compare, summarise
from harness.targets.base import Score
from harness.targets.scorers import open_scorer
from harness.training.recipe import SMALL
from reference.formats import pth
from reference.shape import LoraRanks, ModelShape
from reference.state import State
from reference.state_file import Shifts, save_state
from reference.synthetic import synthetic

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
"""For small products on a busy machine: several threads would wait for each other."""

COMMAND = [sys.executable, "-c", "from harness.cli import main; main()", "lambada"]

WORLD_SHAPE = ModelShape(
    n_layer=1,
    n_embd=16,
    head_size=16,
    n_ffn=32,
    n_vocab=65_536,
    ranks=LoraRanks(decay=4, rate=4, value=4, gate=4),
)
"""The World vocabulary, and beside it as little as possible: the naive recurrence is slow."""

LOGGED = """
import sys
from contextlib import contextmanager

from harness.cli import main
from harness.commands import lambada

class Logged:
    batch = 10

    def __init__(self, scorer, log):
        self.scorer, self.log = scorer, log
        self.identity, self.description = scorer.identity, scorer.description

    def score(self, texts, state=None):
        with open(self.log, "a") as file:
            file.writelines(f"{prompt} {word}\\n" for prompt, word in texts)
        return self.scorer.score(texts, state)

open_scorer = lambada.open_scorer
log = sys.argv.pop(1)

@contextmanager
def logged(*arguments, **options):
    with open_scorer(*arguments, **options) as scorer:
        yield Logged(scorer, log)

lambada.open_scorer = logged
main()
"""
"""The command, with batches of ten, writing down each document that it begins to compute."""


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the command in this process, its results in a folder of this test: exit code, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(
            sys, "argv", ["rwkv-tpu", "lambada", "--runs", str(tmp_path / "runs"), *map(str, arguments)]
        )
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return run


@pytest.fixture(scope="module")
def world(shared_data, tmp_path_factory):
    """Naive and torch on 200 documents of a World-vocabulary checkpoint: what is printed, and the folder of it all."""
    folder = tmp_path_factory.mktemp("world")
    pth.write(synthetic(WORLD_SHAPE).tensors, folder / "world.pth")
    data = shared_data / "lambada" / documents.FILE_NAME
    options = ["--checkpoint", folder / "world.pth", "--runs", folder, "--data", data, "--limit", "200", "--json"]
    both = [*COMMAND, "naive", "torch", *map(str, options)]
    done = subprocess.run(both, capture_output=True, text=True, check=True, env=ONE_THREAD)
    return json.loads(done.stdout), folder


def wait_for(path, lines, process):
    """Wait until the folder's results file has so many lines."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "ended too early"
        for file in (path / "lambada").glob("*.jsonl"):
            if file.read_bytes().count(b"\n") >= lines:
                return file
        time.sleep(0.02)
    pytest.fail(f"no {lines} lines after two minutes")


def test_naive_and_torch_agree(world):
    """On 200 documents each log-likelihood is the same to 1e-4 nats, and the same words are right."""
    printed, _ = world
    (_, naive), (_, fast) = (read(Path(target["results"])) for target in printed["targets"])
    assert len(naive) == len(fast) == printed["n"] == 200
    for a, b in zip(naive, fast, strict=True):
        assert a.id == b.id
        assert b.log_likelihood == pytest.approx(a.log_likelihood, abs=1e-4)
        assert b.log_probs == pytest.approx(a.log_probs, abs=1e-4)
        assert a.correct == b.correct
    assert abs(printed["comparison"]["largest_difference"]) < 1e-4
    assert printed["verdict"] in {Verdict.NOT_SEEN.value, Verdict.NEGLIGIBLE.value}
    assert not printed["accuracy_tells"]


def test_a_noisy_target_is_told_apart(world, shared_data):
    """The paired test sees noise far below the targets' own standard errors; the same target twice differs by 0."""
    printed, folder = world
    model = open_model(folder / "world.pth")
    chosen = documents.subset(documents.read(shared_data / "lambada" / documents.FILE_NAME), 200)
    texts = [to_text(document.text, model.codec) for document in chosen]
    rng = np.random.default_rng(0)
    with open_scorer("torch", model) as scorer:
        scores = scorer.score(texts)
    noisy = [Score(one.log_probs + rng.normal(-0.1, 0.2, len(one.log_probs)), one.is_top) for one in scores]
    names = [document.id for document in chosen]
    good, bad = (list(map(Result.of, names, some)) for some in (scores, noisy))
    one, two = summarise(good), summarise(bad)
    assert abs(one.mean_ll - two.mean_ll) < one.mean_ll_se + two.mean_ll_se
    comparison = compare(good, bad)
    assert comparison.verdict is Verdict.LOWER
    assert comparison.p < 1e-6
    same = compare(good, good)
    assert (same.mean_difference, same.verdict) == (0, Verdict.NOT_SEEN)
    assert one.perplexity == pytest.approx(printed["targets"][1]["summary"]["perplexity"], rel=1e-4)


def test_a_kill_loses_at_most_one_batch(shared_data, tmp_path):
    """Killed in a batch: what was on disk stays byte for byte, is not computed again, and the figures are the same."""
    data = ["--data", shared_data / "lambada" / documents.FILE_NAME, "--limit", "60"]
    log, runs = tmp_path / "log", tmp_path / "killed"
    start = [sys.executable, "-c", LOGGED, log, "lambada", "torch", "--json", *data, "--runs", runs]
    with subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ONE_THREAD) as process:
        file = wait_for(runs, 21, process)
        process.kill()
    kept = file.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    begun = log.read_text().splitlines()
    on_disk = kept.count(b"\n") - 1
    assert 20 <= on_disk < 60
    assert len(begun) - on_disk <= 10

    done = subprocess.run(start, capture_output=True, text=True, check=True, env=ONE_THREAD)
    assert f"{on_disk} of 60 documents are in that file already" in done.stderr
    assert file.read_bytes().startswith(kept)
    again = log.read_text().splitlines()[len(begun) :]
    assert len(again) == 60 - on_disk
    assert not set(again) & set(begun[:on_disk])

    whole = subprocess.run(
        [*COMMAND, "torch", "--json", *data, "--runs", tmp_path / "whole"],
        capture_output=True,
        text=True,
        check=True,
        env=ONE_THREAD,
    )
    uninterrupted = json.loads(whole.stdout)["targets"][0]["summary"]
    assert json.loads(done.stdout)["targets"][0]["summary"] == pytest.approx(uninterrupted, rel=1e-6)


def test_ctrl_c(shared_data, tmp_path, command):
    """Another process is kept out while one runs; Ctrl-C ends that with 130 and a word on how to go on."""
    options = ["naive", "--limit", "100", "--data", shared_data / "lambada" / documents.FILE_NAME]
    start = [*COMMAND, *options, "--runs", tmp_path / "runs"]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        file = wait_for(tmp_path / "runs", 3, process)
        code, _, err = command(*options)
        assert code == 1
        assert err.startswith("error: ")
        assert "another process is writing it" in err
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in err
    assert "Traceback" not in out + err
    assert len(read(file)[1]) >= 2
    assert file.read_bytes().endswith(b"\n")


def test_small_models(shared_data, command):
    """Two precisions on a model without any accuracy: N is printed, and the paired log-likelihood is the verdict."""
    options = ["--limit", "12", "--data", shared_data / "lambada" / documents.FILE_NAME]
    code, out, err = command("torch", "torch-bf16", *options)
    assert (code, err) == (0, "")
    assert "N 12 of 5153" in out
    assert out.count("N 12, perplexity") == 2
    assert "the model that ships, for want of --checkpoint" in out
    assert "torch-bf16 against torch, paired, N 12" in out
    assert "the paired log-likelihood is the verdict" in out


@pytest.mark.toolchain
def test_simulator(shared_data, toolchain, command):
    """Bmodels on the simulator against the emulation of their format: the same numbers to the noise of F16."""
    options = ["--limit", "3", "--data", shared_data / "lambada" / documents.FILE_NAME, "--json"]
    bmodels = ["--chunk", "16", "--chunk", "32", "--toolchain", toolchain.version]
    code, out, err = command("emulated-f16", "cmodel", *options, *bmodels)
    assert code == 0, err
    printed = json.loads(out)
    assert "BM1684X simulator, F16, prefill 16, 32" in printed["targets"][1]["description"]
    assert abs(printed["comparison"]["largest_difference"]) < 0.2


def test_a_target_against_itself(shared_data, command):
    """The second time nothing is computed, and the difference is exactly 0."""
    options = ["--limit", "3", "--data", shared_data / "lambada" / documents.FILE_NAME, "--json"]
    code, out, err = command("torch", "torch", *options)
    assert code == 0
    assert "3 of 3 documents are in that file already" in err
    printed = json.loads(out)
    assert printed["comparison"]["largest_difference"] == 0
    assert printed["verdict"] == "no difference seen"


def test_a_larger_limit_computes_only_what_is_new(shared_data, command):
    """A subset is part of every larger one, so its results are used again."""
    data = ["--data", shared_data / "lambada" / documents.FILE_NAME]
    assert command("--limit", "4", *data)[0] == 0
    code, out, _ = command("--limit", "7", *data)
    assert code == 0
    assert "4 of 7 documents are in that file already" in out
    assert "N 7, perplexity" in out
    assert "Accuracy tells nothing with 0 of 7 documents right: name two targets" in out


def test_a_tuned_state(shared_data, tmp_path, command):
    """A state file changes the numbers, alike for naive and torch, and its results have a file of their own."""
    state = State.random(SMALL, seed=1, dtype=torch.float32)
    save_state(state, tmp_path / "state.pth", shifts=Shifts.DROP)
    options = ["--limit", "2", "--data", shared_data / "lambada" / documents.FILE_NAME, "--json"]
    code, with_state, _ = command("naive", "torch", "--state", tmp_path / "state.pth", *options)
    assert code == 0
    without = json.loads(command("torch", *options)[1])
    with_state = json.loads(with_state)
    assert abs(with_state["comparison"]["largest_difference"]) < 1e-4
    assert with_state["targets"][1]["results"] != without["targets"][0]["results"]
    found, expected = (one["targets"][-1]["summary"]["mean_ll"] for one in (with_state, without))
    assert abs(found - expected) > 1e-2


def test_errors_are_explained(shared_data, tmp_path, command):
    """What cannot be done is one line that says what to do, exit code 1, and nothing is scored."""
    real = shared_data / "lambada" / documents.FILE_NAME
    altered = tmp_path / "altered.jsonl"
    altered.write_bytes(real.read_bytes().replace(b"stone", b"stove", 1))
    for arguments, words in (
        (["--data", altered], f"should be {documents.SHA256}"),
        (["--data", tmp_path / "nothing"], documents.DOWNLOAD_COMMAND),
        (["--data", real, "torch", "troch"], "no target 'troch'; there are naive, torch"),
        (["--data", real, "--codec", "ids"], "no text"),
        (["--data", real, "--checkpoint", tmp_path / "nothing"], "cannot be read"),
        (["--data", real, "--state", tmp_path / "nothing"], "cannot be read"),
    ):
        code, _, err = command(*arguments)
        assert code == 1
        assert err.startswith("error: ")
        assert words in err
    assert not (tmp_path / "runs").exists()


def test_a_broken_target(shared_data, tmp_path, command):
    """Logits beyond float32 are an error that counts the documents, not a perplexity; the results are kept."""
    tensors = dict(synthetic(SMALL).tensors)
    tensors["head.weight"] = tensors["head.weight"] * 1e38
    pth.write(tensors, tmp_path / "huge.pth")
    options = ["--limit", "2", "--data", shared_data / "lambada" / documents.FILE_NAME]
    code, out, err = command("--checkpoint", tmp_path / "huge.pth", *options)
    assert code == 1
    assert "error: 2 of 2 documents have a log-likelihood that is NaN or infinite" in err
    assert "perplexity" not in out
    (file,) = (tmp_path / "runs" / "lambada").glob("huge-torch-*.jsonl")
    assert [result.log_likelihood for result in read(file)[1]] == [None, None]


def test_wrong_use(command):
    """Three targets or a limit of nothing are wrong use, exit code 2."""
    assert command("torch", "naive", "torch")[0] == 2
    assert command("--limit", "0")[0] == 2


def test_fetch_does_nothing_where_the_file_lies(shared_data, tmp_path, monkeypatch, command):
    """An unaltered download is left as it is, without a network."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("RWKV_TPU_CACHE", str(cache))
    (cache / "lambada").mkdir(parents=True)
    goal = Path(shutil.copy(shared_data / "lambada" / documents.FILE_NAME, cache / "lambada"))
    before = goal.stat().st_mtime_ns
    code, out, _ = command("--fetch")
    assert (code, out) == (0, f"{goal}: there, and unaltered\n")
    assert goal.stat().st_mtime_ns == before
