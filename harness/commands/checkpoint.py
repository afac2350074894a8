"""``rwkv-tpu convert`` and ``rwkv-tpu inspect``: checkpoints in all containers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tokenizer.codec import Codec, codec_for
from tokenizer.files import write_files

if TYPE_CHECKING:
    from reference.examine import Findings
    from reference.shape import ModelShape

ContainerName = Literal["pth", "safetensors", "ggmf", "hugging-face"]
DtypeName = Literal["float32", "float16", "bfloat16"]

Source = Annotated[
    Path, typer.Argument(help="a checkpoint: .pth, .safetensors, ggmf, or a folder with config.json", metavar="FILE")
]


def convert(
    source: Source,
    goal: Annotated[
        Path, typer.Argument(help="where to: .pth, .safetensors, .bin (ggmf), or a folder's name", metavar="GOAL")
    ],
    to: Annotated[
        ContainerName | None, typer.Option("--to", help="the goal's container, where its suffix does not tell")
    ] = None,
    dtype: Annotated[DtypeName | None, typer.Option(help="store every tensor so, in place of as it is")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace an existing goal")] = False,
) -> None:
    """Write a checkpoint in another container, tensor for tensor.

    What FILE is, its content tells; what GOAL becomes, its suffix. Values are exact unless --dtype asks for other
    numbers. A folder without suffix gets Hugging Face's layout as flash-linear-attention reads it, with tokenizer
    files where the model has the World vocabulary. The goal is read back and compared, and appears whole or not at
    all.

    Examples:
        rwkv-tpu convert rwkv7-g1-0.1b.pth rwkv7.safetensors

        rwkv-tpu convert rwkv7-g1-0.1b.pth exported/ --dtype float16

        rwkv-tpu convert exported/ back.pth
    """
    import torch

    from reference.checkpoint import Container
    from reference.convert import convert as convert_checkpoint

    notices: list[str] = []

    def add_tokenizer(folder: Path, shape: ModelShape) -> None:
        if codec_for(shape.n_vocab) is Codec.WORLD:
            notices.append(f"tokenizer files: {', '.join(write_files(folder, shape.n_vocab))}")
        else:
            notices.append(f"no tokenizer files: a vocabulary of {shape.n_vocab} ids is not the World vocabulary")

    done = convert_checkpoint(
        source,
        goal,
        container=Container(to) if to else None,
        dtype=getattr(torch, dtype) if dtype else None,
        force=force,
        extra=add_tokenizer,
    )
    for notice in (*done.notices, *notices):
        typer.echo(f"note: {notice}")
    typer.echo(f"{goal}: written as {done.container.value}, read back and found equal")


def inspect(
    path: Source,
    as_json: Annotated[bool, typer.Option("--json", help="print the same as JSON, in full precision")] = False,
) -> None:
    """Show what a checkpoint holds, and what looks wrong with it.

    Sizes, LoRA ranks, vocabulary and its codec, dtypes, the range of values of each kind of tensor over all layers,
    and warnings. Exits with 0 where the checkpoint can be read, warnings or not, and with 1 where it is refused.
    """
    from harness.checkpoints import codec_of
    from reference.examine import examine

    findings = examine(path)
    codec, is_known = codec_of(findings.sha256, findings.shape.n_vocab)
    warnings = list(findings.warnings)
    if codec is Codec.PLAIN and not is_known:
        warnings.append(
            f"a vocabulary of {findings.shape.n_vocab} ids fits no vocabulary with text; only ids can be judged"
        )
    if as_json:
        fields = msgspec.to_builtins(findings, enc_hook=str) | {"codec": codec.value, "warnings": warnings}
        typer.echo(msgspec.json.format(msgspec.json.encode(fields), indent=2).decode())
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for key, value in _summary(findings, codec, is_known=is_known).items():
        console.print(f"{key:<18} {value}")
    console.print()
    console.print(_ranges(findings))
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow")
    if not warnings:
        console.print("nothing looks wrong")


def _summary(findings: Findings, codec: Codec, *, is_known: bool) -> dict[str, object]:
    shape = findings.shape
    ranks = shape.ranks
    return {
        "checkpoint": findings.path,
        "container": findings.container.value,
        "sha256": findings.sha256,
        "size": f"{findings.file_bytes:,} bytes",
        "parameters": f"{findings.parameters:,}",
        "layers": shape.n_layer,
        "width": f"{shape.n_embd} = {shape.n_head} heads of {shape.head_size}",
        "channel-mix width": shape.n_ffn,
        "LoRA ranks": f"decay {ranks.decay}, rate {ranks.rate}, value {ranks.value or '-'}, gate {ranks.gate}",
        "vocabulary": f"{shape.n_vocab:,} ids",
        "codec": f"{codec.value} ({'known file' if is_known else 'by the vocabulary size'})",
        "dtypes": ", ".join(f"{count} tensors of {dtype}" for dtype, count in findings.dtypes.items()),
    }


def _ranges(findings: Findings) -> Table:
    table = Table(title="Values by kind of tensor, over all layers", title_justify="left", box=SIMPLE)
    table.add_column("tensor", no_wrap=True)
    for column in ("shape", "min", "max", "mean |x|", "zeros"):
        table.add_column(column, justify="right", no_wrap=True)
    for values in findings.values:
        table.add_row(
            values.kind.removeprefix("blocks.N."),
            "x".join(map(str, values.shape)),
            f"{values.minimum:.4g}",
            f"{values.maximum:.4g}",
            f"{values.mean_absolute:.4g}",
            f"{values.zeros:.2%}",
        )
    return table
