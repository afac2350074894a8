"""Training: its gradients are those of the recurrence as written down, a killed one resumes to the same bits."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.cli import main
from reference.checkpoint import load
from reference.fast import Fast
from reference.formats import safetensors_file
from reference.naive import Naive
from reference.shape import CheckpointError, LoraRanks, ModelShape
from reference.state import State
from reference.state_file import load_state
from reference.synthetic import synthetic
from reference.training.curve import write_csv, write_png
from reference.training.documents import DocumentError, Mixture, Question, Questions, Texts
from reference.training.initial import fresh
from reference.training.model import Trainable
from reference.training.optimizer import Schedule, optimizer
from reference.training.state_tuning import TunedState
from reference.training.tasks import END, Kind
from reference.training.trainer import DivergedError, Training
from reference.training.wkv import wkv

SHAPE = ModelShape(
    n_layer=2, n_embd=8, head_size=4, n_ffn=12, n_vocab=11, ranks=LoraRanks(decay=3, rate=3, value=2, gate=4)
)


def hard_inputs(T, B=2, H=2, N=4, seed=0):
    """Decays at both ends, repeated keys, in-context rates near 1: what a triangular inverse must survive."""
    rng = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(B, T, H, N, generator=rng, dtype=torch.float64)

    kappa = torch.nn.functional.normalize(normal(), dim=-1)
    kappa[:, T // 2 :] = kappa[:, T // 2 : T // 2 + 1]
    log_w = -0.6 * torch.rand(B, T, H, N, generator=rng, dtype=torch.float64)
    log_w[:, ::3] = -1e-6
    a = torch.rand(B, T, H, N, generator=rng, dtype=torch.float64)
    a[:, ::2] = 1 - 1e-9
    S = torch.randn(B, H, N, N, generator=rng, dtype=torch.float64)
    return [normal(), log_w, normal(), normal(), kappa, a, S]


def naive_wkv(r, log_w, k, v, kappa, a, S):
    """The recurrence, one token after the other."""
    ys = []
    for t in range(r.shape[1]):
        removed = torch.einsum("bhij,bhj->bhi", S, kappa[:, t])
        S = (
            S * log_w[:, t].exp()[:, :, None]
            - torch.einsum("bhi,bhj->bhij", removed, kappa[:, t] * a[:, t])
            + torch.einsum("bhi,bhj->bhij", v[:, t], k[:, t])
        )
        ys.append(torch.einsum("bhij,bhj->bhi", S, r[:, t]))
    return torch.stack(ys, dim=1), S


@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 40])
def test_gradients_are_those_of_the_recurrence(T):
    """Values and gradients of the chunk-parallel form agree with the naive recurrence in float64 to 1e-9."""
    inputs = [x.requires_grad_() for x in hard_inputs(T, seed=T)]
    weights = torch.randn(2, T, 2, 4, dtype=torch.float64), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    results, gradients = [], []
    for form in (wkv, naive_wkv):
        y, S = form(*inputs)
        loss = (y * weights[0]).sum() + (S * weights[1]).sum()
        results.append((y, S))
        gradients.append(torch.autograd.grad(loss, inputs))
    for got, want in zip((*results[0], *gradients[0]), (*results[1], *gradients[1]), strict=True):
        assert (got - want).abs().max() <= 1e-9 * max(1.0, want.abs().max().item())


@pytest.mark.parametrize("T", [3, 18])
def test_gradcheck(T):
    """Gradients of the chunk-parallel form are those that small differences show."""
    inputs = [x.requires_grad_() for x in hard_inputs(T, B=1, H=1, N=3, seed=T)]
    assert torch.autograd.gradcheck(wkv, inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("with_state", [False, True])
def test_model_is_the_reference(with_state):
    """The trainable model computes the logits of the naive reference, from the zero state and from another."""
    checkpoint = synthetic(SHAPE)
    model = Trainable(SHAPE, checkpoint.tensors).double()
    state = State.random(SHAPE, 3, torch.float64) if with_state else None
    tokens = [[1, 2, 3, 3, 3, 10, 0, 5] * 3, [4, 4, 9, 8, 7, 6, 1, 2] * 3]
    start = None if state is None else (state.att_shift, state.wkv, state.ffn_shift)
    with torch.no_grad():
        got = model(torch.tensor(tokens), start)
    for row, logits in zip(tokens, got, strict=True):
        want, _ = Naive(checkpoint).forward(row, state)
        assert (logits - want).abs().max() < 1e-9


def test_recomputing_changes_nothing():
    """Gradient checkpointing gives the very same gradients."""
    gradients = []
    for recompute in (False, True):
        model = Trainable(SHAPE, synthetic(SHAPE).tensors, recompute=recompute)
        model(torch.tensor([[1, 2, 3, 4, 5]])).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_bfloat16_keeps_the_state_precise():
    """Under autocast, as on a GPU, logits are near those of float32 and every gradient is finite and float32."""
    model = Trainable(SHAPE, synthetic(SHAPE).tensors)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    want = model(tokens).detach()
    with torch.autocast("cpu", torch.bfloat16):
        got = model(tokens)
    got.float().square().sum().backward()
    assert (got - want).abs().max() < 0.1 * want.abs().max()
    assert all(p.grad.dtype is torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_fresh_weights_are_a_model():
    """Fresh weights have every tensor of the shape, are reproducible, and predict nothing yet."""
    shape = dataclasses.replace(SHAPE, n_layer=3)
    tensors = fresh(shape, seed=5)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == shape.tensors()
    assert all(torch.equal(t, fresh(shape, seed=5)[name]) for name, t in tensors.items())
    assert not torch.equal(fresh(shape, seed=6)["head.weight"], tensors["head.weight"])
    assert all(t.isfinite().all() and t.dtype is torch.float32 for t in tensors.values())


def test_groups_of_the_optimizer():
    """Matrices alone decay; the decay's bias learns twice as fast; every parameter is in exactly one group."""
    named = [(name.replace("/", "."), p) for name, p in Trainable(SHAPE, fresh(SHAPE)).weights.items()]
    groups = optimizer(named, Schedule(steps=10, rate=1e-3)).param_groups
    name_of = {id(p): name for name, p in named}
    found = {name_of[id(p)]: (g["weight_decay"], g["rate_factor"]) for g in groups for p in g["params"]}
    assert len(found) == len(named)
    assert found["blocks.0.ffn.key.weight"] == found["head.weight"] == (0.1, 1.0)
    assert found["blocks.1.att.w0"] == (0.0, 2.0)
    for name in ("emb.weight", "blocks.0.att.w1", "blocks.0.ln1.weight", "blocks.0.att.r_k", "blocks.1.att.x_k"):
        assert found[name] == (0.0, 1.0), name


@given(st.integers(1, 3000), st.integers(0, 200), st.floats(0, 1))
def test_schedule(steps, warm_up, final):
    """The rate stays between 0 and its peak, rises over the warm-up, falls to the final share."""
    schedule = Schedule(steps=steps, rate=2.0, final=final, warm_up=warm_up)
    rates = [schedule.at(step) for step in range(steps)]
    assert all(0 < rate <= 2.0 + 1e-12 for rate in rates) or final == 0
    rising, falling = rates[: warm_up + 1], rates[warm_up:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert schedule.at(max(steps, warm_up)) == pytest.approx(2.0 * (final if steps > warm_up else 1.0))


@given(st.sampled_from(Kind), st.integers(1, 26), st.integers(0, 2**32))
def test_exercises_have_their_right_answer(kind, length, seed):
    """The answer follows from the prompt, for every kind and length."""
    exercise = kind.exercise(length, random.Random(seed))  # noqa: S311 - reproducible, not secret
    asked, answer = exercise.prompt.removeprefix(kind.value + " ").removesuffix("="), exercise.answer.removesuffix(END)
    assert exercise.prompt.endswith("=")
    assert exercise.answer.endswith(END)
    match kind:
        case Kind.COPY:
            assert answer == asked
            assert len(asked) == length
        case Kind.SORT:
            assert answer == "".join(sorted(asked))
        case Kind.REVERSE | Kind.BARE_REVERSE:
            assert answer[::-1] == asked
        case Kind.RECALL:
            *pairs, key = asked.split()
            assert len(pairs) == length
            assert [pair[1] for pair in pairs if pair[0] == key] == [answer]


def draw(rng):
    """A question whose answer is longer than its prompt now and then."""
    return Question((5,) * rng.randint(1, 4), (6,) * rng.randint(1, 5))


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**31))
def test_rows_of_questions(length, rows, seed):
    """Answers alone are learned, the ends of text stand before prompts, and a batch depends on seed and step alone."""
    mixture = Mixture((Questions(draw), Texts([[7, 8, 9], [3] * 50])), (1.0, 1.0))
    batch = mixture.batch(3, rows=rows, length=length, seed=seed)
    again = mixture.batch(3, rows=rows, length=length, seed=seed)
    assert all(torch.equal(getattr(batch, f.name), getattr(again, f.name)) for f in dataclasses.fields(batch))
    assert batch.fed.shape == (rows, length)
    assert torch.equal(batch.fed[:, 1:], batch.wanted[:, :-1])
    assert not set(batch.wanted[batch.learned].tolist()) & {5}
    only = Mixture((Questions(draw),), (1.0,)).batch(0, rows=rows, length=length, seed=seed)
    assert set(only.wanted[only.learned].tolist()) <= {6}
    assert set(only.fed[:, 0].tolist()) == {0}


def test_rows_that_are_not_packed():
    """For state tuning each row is one question right behind the state; what fills it up is not learned."""
    batch = Mixture((Questions(draw, packed=False),), (1.0,)).batch(0, rows=50, length=20, seed=1)
    assert set(batch.fed[:, 0].tolist()) == {5}
    assert set(batch.wanted[batch.learned].tolist()) == {6}
    assert 0 not in batch.wanted[batch.learned].tolist()


def test_nothing_to_learn():
    """Documents without a token are an error, not an endless loop."""
    with pytest.raises(DocumentError, match="no tokens"):
        Texts([[], []])


def small_training(steps=6, *, seed=0, schedule=None):
    """A training of a few steps on a tiny model."""
    model = Trainable(SHAPE, fresh(SHAPE, seed))
    mixture = Mixture((Questions(draw),), (1.0,))
    named = [(name.replace("/", "."), p) for name, p in model.weights.items()]
    schedule = schedule or Schedule(steps=steps, rate=1e-2, warm_up=2)

    def batch(step):
        return mixture.batch(step, rows=4, length=12, seed=seed)

    return model, Training(model, named, batch, schedule, identity=f"test {seed}")


def test_resume_to_the_same_bits(tmp_path):
    """A training that was saved and taken up again ends with the weights and the curve of one in one go."""
    whole_model, whole = small_training()
    while not whole.finished:
        whole.advance()
    _, first = small_training()
    for _ in range(3):
        first.advance()
    first.save(tmp_path / "t.pt")
    model, second = small_training()
    second.resume(tmp_path / "t.pt")
    assert second.step == 3
    while not second.finished:
        second.advance()
    assert second.curve == whole.curve
    assert all(torch.equal(t, whole_model.tensors()[name]) for name, t in model.tensors().items())


def test_resume_refuses_another_training(tmp_path):
    """A saved training goes on only as what it was; a damaged one is told."""
    small_training()[1].save(tmp_path / "t.pt")
    with pytest.raises(CheckpointError, match="another recipe"):
        small_training(seed=1)[1].resume(tmp_path / "t.pt")
    with pytest.raises(CheckpointError, match="another recipe"):
        small_training(schedule=Schedule(steps=6, rate=2e-2))[1].resume(tmp_path / "t.pt")
    (tmp_path / "t.pt").write_bytes(b"half of a file")
    with pytest.raises(CheckpointError, match="no saved training"):
        small_training()[1].resume(tmp_path / "t.pt")


def test_a_loss_that_is_not_finite():
    """A training that runs away stops with the weights of the step before."""
    model, training = small_training()
    with torch.no_grad():
        model.weights["head/weight"].fill_(float("nan"))
    before = {name: tensor.clone() for name, tensor in model.tensors().items() if name != "head.weight"}
    with pytest.raises(DivergedError, match="lower the learning rate"):
        training.advance()
    assert all(torch.equal(t, model.tensors()[name]) for name, t in before.items())


def test_learns():
    """The loss of a tiny model on a task that it can solve falls by far."""
    _, training = small_training(schedule=Schedule(steps=120, rate=3e-2, warm_up=5))
    while not training.finished:
        training.advance()
    assert training.curve[-1].loss_nats < 0.5 * training.curve[0].loss_nats


@pytest.mark.parametrize("shifts", [False, True])
def test_state_tuning_leaves_the_weights_alone(shifts):
    """What is tuned changes, and nothing else; the tuned state means the same to the reference."""
    checkpoint = synthetic(SHAPE)
    tuned = TunedState(Trainable(SHAPE, checkpoint.tensors), shifts=shifts)
    mixture = Mixture((Questions(draw, packed=False),), (1.0,))

    def batch(step):
        return mixture.batch(step, rows=8, length=10, seed=0)

    training = Training(tuned, tuned.trained(), batch, Schedule(steps=30, rate=3e-2, warm_up=2), identity="")
    while not training.finished:
        training.advance()
    assert training.curve[-1].loss_nats < training.curve[0].loss_nats
    assert all(torch.equal(t, checkpoint.tensors[name]) for name, t in tuned.model.tensors().items())
    state = tuned.state()
    assert state.wkv.any()
    assert bool(state.att_shift.any()) == bool(state.ffn_shift.any()) == shifts
    tokens = [5, 5, 6, 1]
    with torch.no_grad():
        want = tuned(torch.tensor([tokens]))[0]
    got, _ = Fast(checkpoint).forward(tokens, state)
    assert (got - want).abs().max() < 1e-4


def test_curve_files(tmp_path):
    """The curve is written as a row per step and as a picture."""
    _, training = small_training()
    while not training.finished:
        training.advance()
    write_csv(training.curve, tmp_path / "curve.csv")
    write_png(training.curve, tmp_path / "curve.png", "a test")
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines[0] == "step,loss_nats,gradient_norm,rate"
    assert len(lines) == 7
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


COMMAND = str(Path(sys.executable).with_name("rwkv-tpu"))
RECIPE = """
rows = 4
context = 24
save_every = 5
seed = 3
[shape]
n_layer = 1
n_embd = 64
head_size = 64
n_ffn = 64
n_vocab = 257
ranks = { decay = 8, rate = 8, value = 0, gate = 8 }
[schedule]
steps = 40
rate = 1e-3
warm_up = 5
[[sources]]
kind = "exercises"
lengths = { copy = 3 }
[[sources]]
kind = "text"
files = ["text.txt"]
"""


def rwkv_tpu(*arguments, cwd):
    """Run the command to its end."""
    command = [COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment())


def environment():
    """One thread: the same sums in the same order."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}


def test_command_killed_and_resumed(tmp_path):
    """`rwkv-tpu train`, killed with SIGKILL in the middle, resumes to a file of the same bytes."""
    (tmp_path / "text.txt").write_text("It was a bright cold day in April. " * 20)
    (tmp_path / "r.toml").write_text(RECIPE)
    done = rwkv_tpu("train", "r.toml", "--out", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    command = [COMMAND, "train", "r.toml", "--out", "killed"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "training.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    done = rwkv_tpu("train", "r.toml", "--out", "killed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    for name in ("model.safetensors", "curve.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    # A finished training goes on from its checkpoint, on another text; its state can be tuned.
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d"}\n')
    start = "whole/model.safetensors"
    done = rwkv_tpu("train", "--from", start, "--answers", "a.jsonl", "--steps", "3", "--out", "more", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = load(tmp_path / start), load(tmp_path / "more" / "model.safetensors")
    assert before.shape == after.shape
    assert not torch.equal(before.tensors["head.weight"], after.tensors["head.weight"])
    done = rwkv_tpu(
        "state-tune", start, "--answers", "a.jsonl", "--steps", "3", "--shifts", "--out", "state", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    state = load_state(tmp_path / "state" / "state.pth", before.shape)
    assert state.wkv.any()
    assert state.att_shift.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('kind = "text"', 'kind = "book"'), "Invalid value 'book'"),
        (("copy = 3", "juggle = 3"), "no exercise 'juggle'"),
        (("copy = 3", "recall = 27"), "should be 1 to 26"),
        (("rate = 1e-3", "rate = 0.0"), "rate should be above 0"),
        (("text.txt", "none.txt"), "none.txt: cannot be read"),
        (("rows = 4", "rows = 0"), "rows should be at least 1"),
        (("seed = 3", "speed = 3"), "unknown field `speed`"),
    ],
)
def test_recipes_with_a_mistake(tmp_path, monkeypatch, capsys, change, message):
    """Each mistake is named before anything is trained; nothing is written."""
    (tmp_path / "text.txt").write_text("words " * 50)
    (tmp_path / "r.toml").write_text(RECIPE.replace(*change))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "train", "r.toml", "--out", "out"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (("n_vocab = 257", "n_vocab = 200"), (), "expects a vocabulary of 257"),
        (("", ""), ("--device", "tpu"), "there are cpu and cuda"),
        (("rate = 1e-3", "rate = 1e30"), (), "lower the learning rate"),
    ],
)
def test_what_cannot_be_trained(tmp_path, monkeypatch, capsys, change, arguments, message):
    """Ids without rows, a device that is not there, a loss that runs away: an error in words, and no model."""
    (tmp_path / "text.txt").write_text("words " * 50)
    (tmp_path / "r.toml").write_text(RECIPE.replace(*change) if change[0] else RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "train", "r.toml", "--out", "out", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_container_of_what_was_trained(tmp_path):
    """A trained model is written as the reader expects it, exactly."""
    tensors = fresh(dataclasses.replace(SHAPE, n_embd=64, head_size=64))
    safetensors_file.write(tensors, tmp_path / "m.safetensors")
    assert all(torch.equal(t, tensors[name]) for name, t in load(tmp_path / "m.safetensors").tensors.items())
