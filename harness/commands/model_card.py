"""``rwkv-tpu model-card``: what the shipped model can do, measured."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def model_card(
    recipe: Annotated[Path, typer.Option(help="that it was trained by")] = Path("models/tiny.toml"),
    retrained: Annotated[
        list[Path] | None,
        typer.Option("--retrained", help="another model of the same recipe; can be repeated", metavar="FILE"),
    ] = None,
    n: Annotated[int, typer.Option("--questions", min=1, help="of each task and length")] = 200,
    out: Annotated[Path, typer.Option("--out", help="the Markdown file")] = Path("docs/model-card.md"),
) -> None:
    """Measure the shipped model on the reference, and write its card.

    Bits per byte of held-out text, exact answers by task and length, the same with weights and state stored in other
    formats, what the tuned state adds, and how far retrained models vary. Some minutes on two cores.
    """
    from harness.checkpoints import open_model
    from harness.training.card import write_card
    from harness.training.recipe import read_recipe
    from reference.checkpoint import load

    say = partial(typer.echo, err=True)
    text = write_card(open_model(None), read_recipe(recipe), [load(path) for path in retrained or ()], n, say)
    out.write_text(text)
    typer.echo(out)
