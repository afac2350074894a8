"""``rwkv-tpu train`` and ``rwkv-tpu state-tune``: small models and initial states from text, answers and exercises."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import torch
import typer

from harness.training.recipe import SMALL, Answers, Recipe, RecipeError, TextFiles, check_recipe, read_recipe
from reference.training.optimizer import Schedule
from tokenizer.codec import Codec
from tokenizer.codec import check as check_codec

if TYPE_CHECKING:
    from harness.training.recipe import SourceRecipe
    from reference.checkpoint import Checkpoint

RecipeFile = Annotated[
    Path | None, typer.Argument(help="a TOML file, see docs/training.md; or name what is learned by options")
]
Out = Annotated[Path, typer.Option("--out", help="a folder for the result, the curve and the saved training")]
Texts = Annotated[
    list[Path] | None,
    typer.Option("--text", help="a text file, or .jsonl with a text a line; can be repeated", metavar="FILE"),
]
AnswerFile = Annotated[
    Path | None, typer.Option("--answers", help='JSON lines of {"prompt": …, "answer": …}', metavar="FILE")
]
CodecOption = Annotated[Codec | None, typer.Option(help="what the ids mean, where the vocabulary does not tell")]
Steps = Annotated[int | None, typer.Option(min=1, help="batches in all")]
Rate = Annotated[float | None, typer.Option(help="highest learning rate")]
Rows = Annotated[int | None, typer.Option(min=1, help="rows of a batch")]
Context = Annotated[int | None, typer.Option(min=2, help="tokens of a row")]
Seed = Annotated[int | None, typer.Option(help="of the weights and of the batches")]
Device = Annotated[str, typer.Option(help="cpu, or cuda: there the products are computed in bfloat16")]


def train(
    out: Out,
    recipe_file: RecipeFile = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--from", help="go on from this checkpoint, of any container", metavar="FILE")
    ] = None,
    text: Texts = None,
    answers: AnswerFile = None,
    codec: CodecOption = None,
    steps: Steps = None,
    rate: Rate = None,
    rows: Rows = None,
    context: Context = None,
    seed: Seed = None,
    device: Device = "cpu",
) -> None:
    """Train an RWKV-7, a new one or a checkpoint, and write OUT/model.safetensors.

    The recipe names the sizes of a new model, the schedule and what is learned; options go before it. After a kill or
    Ctrl-C the same command goes on from the last saved state, on a CPU to the same bits.

    Examples:
        rwkv-tpu train models/tiny.toml --out trained/

        rwkv-tpu train --text book.txt --steps 2000 --out mine/

        rwkv-tpu train --from mine/model.safetensors --answers dialogue.jsonl --rate 3e-4 --out tuned/
    """
    from harness.checkpoints import codec_of
    from harness.training.run import run_training
    from harness.training.sources import open_sources
    from reference.atomic import replacing
    from reference.checkpoint import load
    from reference.formats.safetensors_file import write
    from reference.training.initial import fresh
    from reference.training.model import Trainable
    from reference.training.trainer import Training

    recipe = _recipe(
        recipe_file,
        text,
        answers,
        schedule={"steps": steps, "rate": rate},
        sizes={"rows": rows, "context": context, "seed": seed},
    )
    start: Checkpoint | None = None
    if checkpoint is None:
        shape = recipe.shape or SMALL
        codec = codec or recipe.codec
        tensors = fresh(shape, recipe.seed)
    else:
        start = load(checkpoint)
        if recipe.shape not in (None, start.shape):
            raise RecipeError(f"the recipe is of {recipe.shape}, but {checkpoint} of {start.shape}: leave out [shape]")
        shape, tensors = start.shape, dict(start.tensors)
        codec = codec or codec_of(start.sha256, shape.n_vocab)[0]
    _check(codec, shape.n_vocab, device)
    opened = open_sources(recipe, codec)
    model = Trainable(shape, tensors, recompute=recipe.recompute).to(device)
    named = [(name.replace("/", "."), parameter) for name, parameter in model.weights.items()]
    training = Training(
        model,
        named,
        partial(opened.mixture.batch, rows=recipe.rows, length=recipe.context, seed=recipe.seed),
        recipe.schedule,
        identity=repr(("train", _identity(recipe), opened.sha256, start.sha256 if start else None, codec)),
    )
    _folder(out)
    say = partial(typer.echo, err=True)
    say(f"{sum(t.numel() for t in tensors.values()):,} parameters, {recipe.rows * recipe.context:,} tokens a step")
    run_training(training, out, save_every=recipe.save_every, title=f"training of {out.name}", say=say)
    with replacing(out / "model.safetensors", force=True) as made:
        write({name: tensor.cpu() for name, tensor in model.tensors().items()}, made)
    typer.echo(out / "model.safetensors")


def state_tune(
    checkpoint: Annotated[Path, typer.Argument(help="the model, of which nothing is changed", metavar="CHECKPOINT")],
    out: Out,
    recipe_file: RecipeFile = None,
    shifts: Annotated[bool, typer.Option("--shifts", help="tune the two token-shift states, too")] = False,
    text: Texts = None,
    answers: AnswerFile = None,
    codec: CodecOption = None,
    steps: Steps = None,
    rate: Rate = None,
    rows: Rows = None,
    context: Context = None,
    seed: Seed = None,
    device: Device = "cpu",
) -> None:
    """Train the initial state of a model whose weights stay as they are, and write OUT/state.pth.

    Every prompt follows the state directly: no end of text stands between. Such a file goes where a tuned state is
    asked for, as in `rwkv-tpu lambada --state`. With --shifts it holds tensors that other programs do not read.

    Examples:
        rwkv-tpu state-tune models/tiny.safetensors models/bare-reverse.toml --out tuned/

        rwkv-tpu state-tune rwkv7.pth --answers dialogue.jsonl --steps 500 --out tuned/
    """
    from harness.checkpoints import codec_of
    from harness.training.run import run_training
    from harness.training.sources import open_sources
    from reference.checkpoint import load
    from reference.state_file import Shifts, save_state
    from reference.training.model import Trainable
    from reference.training.state_tuning import TunedState
    from reference.training.trainer import Training

    recipe = _recipe(
        recipe_file,
        text,
        answers,
        schedule={"steps": steps, "rate": rate},
        sizes={"rows": rows, "context": context, "seed": seed},
    )
    if recipe.shape is not None:
        raise RecipeError(f"{recipe_file}: has a [shape], but the sizes are those of {checkpoint}: leave it out")
    start = load(checkpoint)
    codec = codec or codec_of(start.sha256, start.shape.n_vocab)[0]
    _check(codec, start.shape.n_vocab, device)
    opened = open_sources(recipe, codec, packed=False)
    tuned = TunedState(Trainable(start.shape, start.tensors, recompute=recipe.recompute), shifts=shifts).to(device)
    training = Training(
        tuned,
        tuned.trained(),
        partial(opened.mixture.batch, rows=recipe.rows, length=recipe.context, seed=recipe.seed),
        recipe.schedule,
        identity=repr(("state-tune", _identity(recipe), opened.sha256, start.sha256, codec, shifts)),
    )
    _folder(out)
    say = partial(typer.echo, err=True)
    run_training(training, out, save_every=recipe.save_every, title=f"state tuning of {start.name}", say=say)
    save_state(tuned.state(), out / "state.pth", shifts=Shifts.KEEP, force=True)
    typer.echo(out / "state.pth")


def _recipe(
    file: Path | None,
    text: list[Path] | None,
    answers: Path | None,
    *,
    schedule: dict[str, float | int | None],
    sizes: dict[str, int | None],
) -> Recipe:
    """The recipe of the file, or one of the options alone; options that are given go before it."""
    if file is None:
        named: list[SourceRecipe] = [TextFiles(files=tuple(map(str, text)))] if text else []
        named += [Answers(file=str(answers))] if answers else []
        if not named:
            raise RecipeError("nothing to learn from: give a recipe, --text or --answers")
        recipe = Recipe(schedule=Schedule(steps=1000, rate=1e-3), sources=tuple(named))
    elif text or answers:
        raise RecipeError(f"{file} says what is learned: leave out --text and --answers, or the recipe")
    else:
        recipe = read_recipe(file)
    replaced = replace(recipe.schedule, **_given(schedule))
    recipe = msgspec.structs.replace(recipe, schedule=replaced, **_given(sizes))
    check_recipe(recipe, "with the options" if file is None else f"{file}, with the options")
    return recipe


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check(codec: Codec, n_vocab: int, device: str) -> None:
    """Refuse ids that the model has no rows for, and a device that is not there, before anything is trained."""
    check_codec(codec, n_vocab)
    if device not in ("cpu", "cuda"):
        raise RecipeError(f"no device {device!r}; there are cpu and cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("torch sees no CUDA device here: leave out --device, or install a CUDA build of torch")


def _identity(recipe: Recipe) -> str:
    """All of a recipe that determines the weights."""
    return msgspec.json.encode(msgspec.structs.replace(recipe, save_every=1)).decode()


def _folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{out}: cannot be made a folder: {error.strerror}") from error
