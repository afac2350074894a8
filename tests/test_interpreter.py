"""The interpreters of the dialects: their process, on a fake ``pymlir``, and the real ones by their results."""

import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from compile.compiler import Job
from compile.graphs.model import Rwkv7
from compile.interpreter import Interpreter, InterpreterError
from compile.lowering import Dialect, lowered
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.toolchain import Toolchain
from harness.checkpoints import open_model
from harness.metrics import logits_distance, state_nmse
from harness.prompts import prompt
from harness.targets.bmodel import BmodelTarget
from harness.targets.scorers import Compiled, open_scorer
from harness.targets.torch import ReferenceTarget
from reference.emulated import Emulated
from reference.naive import Naive
from reference.precision import Precision
from reference.state import State
from runtime.engine import Engine
from runtime.libraries import Libraries

FAKE_PYMLIR = '''
"""Adds its two inputs; the first, where it is one of these, says what else to do."""
import os, sys, time
import numpy as np

def set_mem_mode(mode):
    assert mode == "value_mem"

class module:
    input_names, output_names = ["what", "x"], ["sum", "x.next"]

    def load(self, path):
        text = open(path).read()
        print("on stdout, where replies go", flush=True)
        if text != "good":
            raise RuntimeError("failed to load mlir file: " + path)
        self.values = {name: np.zeros((1, 2), np.float32) for name in self.input_names}

    def set_tensor(self, name, data, shape):
        assert data.dtype == np.float32
        self.values[name] = data

    def get_tensor(self, name):
        return self.values[name]

    def invoke(self):
        what = self.values["what"][0, 0]
        print("computing", what, flush=True)
        if what == 666:
            os.abort()
        if what == 777:
            time.sleep(600)
        self.values["sum"] = self.values["what"] + self.values["x"]
        self.values["x.next"] = self.values["x"] + 1
'''


class FakeToolchain(Toolchain):
    """This Python, with the package above."""

    @property
    def python(self):
        """An interpreter that has numpy."""
        return Path(sys.executable)


@pytest.fixture
def fake(tmp_path):
    """A toolchain whose interpreter is the fake, and an MLIR file that it takes."""
    toolchain = FakeToolchain(tmp_path, None)
    package = toolchain.package / "python"
    package.mkdir(parents=True)
    (package / "pymlir.py").write_text(FAKE_PYMLIR)
    (tmp_path / "top.mlir").write_text("good")
    return toolchain


def arrays(what):
    """Inputs of the fake graph: integers and floats."""
    return [np.array([[what, 2]], np.int32), np.array([[0.5, -1]], np.float32)]


def gone(pid):
    """Whether a process has ended, and was waited for."""
    return not psutil.pid_exists(pid)


def test_requests(fake, tmp_path):
    """Arrays go through exactly, again and again, whatever the libraries print; in the end the process is gone."""
    with Interpreter(fake, tmp_path / "top.mlir") as interpreter:
        for what in range(5):
            total, after = interpreter.run(arrays(what))
            assert total.tolist() == [[what + 0.5, 1]]
            assert after.tolist() == [[1.5, 0]]
    assert gone(interpreter.pid)
    interpreter.close()
    with pytest.raises(InterpreterError, match="closed"):
        interpreter.run(arrays(1))


@pytest.mark.parametrize(
    ("inputs", "how"),
    [
        (arrays(666), r"died of SIGABRT(.*\n)*.*computing 666"),
        (arrays(1)[:1], r"exited with status 1(.*\n)*.*expected inputs of shapes \[\(1, 2\), \(1, 2\)\]"),
        (arrays(777), r"no answer within 3 s(.*\n)*.*computing 777"),
    ],
)
def test_death(fake, tmp_path, inputs, how):
    """Death, refusal and silence are one typed error with the last words; nothing is left, and nothing goes on."""
    with Interpreter(fake, tmp_path / "top.mlir", timeout_s=3) as interpreter:
        interpreter.run(arrays(1))
        with pytest.raises(InterpreterError, match=how):
            interpreter.run(inputs)
        assert gone(interpreter.pid)
        with pytest.raises(InterpreterError, match="closed"):
            interpreter.run(arrays(1))


def test_death_between_runs(fake, tmp_path):
    """A process that is killed while nobody looks is found dead at the next run."""
    with Interpreter(fake, tmp_path / "top.mlir") as interpreter:
        os.kill(interpreter.pid, signal.SIGKILL)
        with pytest.raises(InterpreterError, match="died of SIGKILL"):
            interpreter.run(arrays(1))


def test_a_file_that_does_not_load(fake, tmp_path):
    """Opening fails, says why, and leaves no process."""
    (tmp_path / "top.mlir").write_text("bad")
    before = psutil.Process().children()  # of other tests: multiprocessing's resource tracker lives as long as we do
    with pytest.raises(InterpreterError, match=r"loading .*top\.mlir(.*\n)*.*failed to load mlir file: top\.mlir"):
        Interpreter(fake, tmp_path / "top.mlir")
    assert psutil.Process().children() == before


def test_interrupt(fake, tmp_path):
    """Ctrl-C in the middle of a run ends the process: its late reply must not answer another request."""
    with Interpreter(fake, tmp_path / "top.mlir") as interpreter:
        timer = threading.Timer(1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            interpreter.run(arrays(777))
        assert gone(interpreter.pid)


def test_it_dies_with_its_parent(fake, tmp_path):
    """A killed parent takes the interpreter along, even in the middle of a run."""
    pid = os.fork()
    if pid == 0:
        with Interpreter(fake, tmp_path / "top.mlir") as interpreter:
            (tmp_path / "pid.part").write_text(str(interpreter.pid))
            (tmp_path / "pid.part").rename(tmp_path / "pid")
            interpreter.run(arrays(777))
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = psutil.Process(int((tmp_path / "pid").read_text()))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    worker.wait(timeout=30)


@pytest.fixture(scope="module")
def model():
    """The model that ships."""
    return open_model(None)


@pytest.fixture(scope="module")
def tokens(model):
    """Enough for two chunks of 16 and a tail."""
    return prompt(model, 40)


@pytest.fixture(scope="module")
def state(model):
    """A state that is not zero."""
    return State.random(model.checkpoint.shape, 1, torch.float32).arrays()


@pytest.fixture(scope="module")
def want(model, tokens, state):
    """What the naive recurrence says."""
    return ReferenceTarget(Naive(model.checkpoint)).run(tokens, state)


@pytest.mark.toolchain
@pytest.mark.parametrize("chunk_lengths", [(), (16,)])
def test_top(toolchain, model, tokens, state, want, chunk_lengths):
    """The TOP dialect is the graph in float32: every position, the state after the last."""
    compiled = Compiled(chunk_lengths=chunk_lengths, toolchain=toolchain.version)
    with open_scorer("top", model, compiled) as scorer:
        got = scorer.target.run(tokens, state)
        assert scorer.identity["toolchain"] == toolchain.identity
        assert "quantization" not in scorer.identity
        with pytest.raises(ValueError, match="outside the vocabulary"):
            scorer.target.run([model.checkpoint.shape.n_vocab])
    assert got.positions == want.positions
    assert abs(got.logits - want.logits).max() <= 1e-5 * abs(want.logits).max()
    assert max(state_nmse(want.state, got.state).values()) <= 1e-11


@pytest.mark.toolchain
@pytest.mark.parametrize("chunk_lengths", [(), (16,)])
def test_tpu(toolchain, model, tokens, state, want, chunk_lengths):
    """The TPU dialect is as far from the truth as F16 is: further than float32, nearer than any coarser format."""
    compiled = Compiled(chunk_lengths=chunk_lengths, toolchain=toolchain.version)
    with open_scorer("tpu", model, compiled) as scorer:
        got = scorer.target.run(tokens, state)
        assert scorer.identity["quantization"] == "F16"
    assert got.positions == want.positions
    distance = logits_distance(want.logits, got.logits, near_tie_nats=0.0)
    assert 1e-7 < distance.kl_mean_nats < 5e-5
    assert distance.kl_worst_nats < 2e-4
    assert 1e-9 < max(state_nmse(want.state, got.state).values()) < 1e-5


@pytest.mark.toolchain
def test_tpu_quantised(toolchain, model, tokens, state, want):
    """The quantisation asked for is the one computed: far from the truth, and where its emulation is."""
    compiled = Compiled(quantization=Quantization.W4F16, chunk_lengths=(), toolchain=toolchain.version)
    with open_scorer("tpu", model, compiled) as scorer:
        got = scorer.target.run(tokens, state)
    emulated = ReferenceTarget(Emulated(model.checkpoint, Precision.W4F16)).run(tokens, state)
    assert logits_distance(want.logits, got.logits, near_tie_nats=0.0).kl_mean_nats > 1e-2
    assert logits_distance(emulated.logits, got.logits, near_tie_nats=0.0).kl_mean_nats < 5e-5


@pytest.mark.toolchain
def test_tpu_and_simulator(toolchain, model, tokens, state, rwkv_bmodels):
    """The simulator computes what the TPU dialect says, as near as two roundings to F16 are to each other."""
    with open_scorer("tpu", model, Compiled(chunk_lengths=(), toolchain=toolchain.version)) as scorer:
        interpreted = scorer.target.run(tokens[:12], state)
    with Engine.open(Libraries.cmodel(rwkv_bmodels.libraries), [rwkv_bmodels.decode]) as engine:
        simulated = BmodelTarget(engine, "decode").run(tokens[:12], state)
    distance = logits_distance(simulated.logits, interpreted.logits, near_tie_nats=0.0)
    assert distance.kl_worst_nats < 1e-4


@pytest.mark.toolchain
def test_dialects_are_cached(toolchain, model, tmp_path):
    """A dialect is made once; TOP for every quantisation; without its weights it is made again."""
    job = Job(
        arrays=model.arrays,
        arrays_sha256=model.arrays_sha256,
        variant=Rwkv7,
        spec=GraphSpec(kind=GraphKind.DECODE),
        quantization=Quantization.F16,
        toolchain=toolchain,
    )
    said = []
    top = lowered(job, Dialect.TOP, tmp_path, say=said.append)
    assert len(said) == 2  # export and transform, nothing further
    assert lowered(dataclasses.replace(job, quantization=Quantization.W4F16), Dialect.TOP, tmp_path) == top
    tpu = [
        lowered(dataclasses.replace(job, quantization=quantization), Dialect.TPU, tmp_path)
        for quantization in (Quantization.F16, Quantization.BF16)
    ]
    assert len({top, *tpu}) == 3
    for mlir in (top, *tpu):
        assert {path.suffix for path in mlir.parent.iterdir()} == {".mlir", ".npz", ".log"}
    next(top.parent.glob("*.npz")).unlink()
    said.clear()
    assert lowered(job, Dialect.TOP, tmp_path, say=said.append) == top
    assert len(said) == 2
    assert list(top.parent.glob("*.npz"))
