"""``rwkv-tpu lambada``: perplexity and accuracy of one target, or the difference of two."""

from __future__ import annotations

import hashlib
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from compile.compiler import STAGE_TIMEOUT_S
from compile.release import DEFAULT_RELEASE
from compile.spec import MOST_TOKENS, Quantization
from harness.checkpoints import open_model
from harness.commands.options import Checkpoint, StageTimeout, ToolchainVersion
from harness.device.guard import InfraError
from harness.lambada import documents
from harness.lambada.protocol import PROTOCOL, to_text
from harness.lambada.results import Header, Key, open_results
from harness.lambada.run import score_documents
from harness.lambada.statistics import Comparison, Summary, compare, summarise
from harness.lambada.words import comparison_words, hint_words, summary_words
from harness.manifest import now
from harness.paths import cache_folder
from harness.targets.scorers import DESCRIPTIONS, Compiled, check_name, is_local_board, open_scorer
from reference.shape import CheckpointError
from reference.state_file import load_state
from runtime.faults import RuntimeFault
from tokenizer.codec import Codec

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from harness.checkpoints import Model
    from harness.lambada.results import Result, Results
    from harness.targets.base import StateArrays, Text
    from reports.schema import Reading, Record


def lambada(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"what to score, or two to compare the second with the first: {', '.join(DESCRIPTIONS)}",
            metavar="TARGET",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    codec: Annotated[Codec | None, typer.Option(help="what its ids mean, where the vocabulary does not tell")] = None,
    data: Annotated[Path | None, typer.Option(help="the data file, where it is not found by itself")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="score N documents, always the same ones, in place of 5,153", metavar="N"),
    ] = None,
    state: Annotated[Path | None, typer.Option(help="start each document from this tuned state, a .pth file")] = None,
    quantization: Annotated[
        Quantization, typer.Option(help="of the bmodels, where a target has any")
    ] = Quantization.F16,
    chunk: Annotated[
        list[int] | None,
        typer.Option(min=2, max=MOST_TOKENS, help="tokens a call of a prefill graph; can be repeated", metavar="T"),
    ] = None,
    toolchain: ToolchainVersion = DEFAULT_RELEASE,
    stage_timeout: StageTimeout = STAGE_TIMEOUT_S,
    libsophon: Annotated[
        Path | None,
        typer.Option(help="libsophon of a board named as target, where it is not in /opt/sophon", metavar="DIR"),
    ] = None,
    runs: Annotated[Path, typer.Option(help="results are kept in its folder lambada", metavar="DIR")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON in full precision; lines go to stderr")] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="download the data file, check it, and stop")] = False,
) -> None:
    """Predict the last word of LAMBADA's passages: perplexity per word, accuracy, or how two targets differ.

    Each document's result is on disk as soon as its batch is done: after a kill or Ctrl-C the same command goes on
    from there, and a larger --limit computes only what is new. Two targets are compared document by document, which
    sees differences far smaller than either one's standard error.

    A board is locked while it is used, and its canary asked before and after: one that is busy or sick ends the
    command with exit code 1.

    Examples:
        rwkv-tpu lambada --fetch

        rwkv-tpu lambada --checkpoint rwkv7-g1-0.1b.pth

        rwkv-tpu lambada naive torch --limit 200 --checkpoint rwkv7-g1-0.1b.pth

        rwkv-tpu lambada emulated-w4f16 cmodel --quantization W4F16 --limit 20

        rwkv-tpu lambada torch ssh://user@host/0 --limit 500
    """
    if fetch:
        typer.echo(f"{documents.fetch(cache_folder())}: there, and unaltered")
        return
    names = targets or ["torch"]
    if len(names) > 2:
        raise typer.BadParameter(f"one or two targets can be named, not {len(names)}: {' '.join(names)}")
    for name in names:  # opening it would tell too, but the second only after hours of the first
        check_name(name)
    if libsophon is not None and not any(map(is_local_board, names)):
        raise typer.BadParameter(
            "--libsophon is of a board of this machine: name its number as target; for ssh://…, write ?libsophon=/DIR "
            "behind the address"
        )
    say = partial(typer.echo, err=as_json)
    with _interruptible():
        file = documents.find_data(data)
        every = documents.read(file)
        chosen = documents.subset(every, limit)
        model = open_model(checkpoint, codec)
        question = _Question(
            model=model,
            texts={document.id: to_text(document.text, model.codec) for document in chosen},
            data_sha256=documents.SHA256,
            state=None if state is None else load_state(state, model.checkpoint.shape).arrays(),
            state_sha256=None if state is None else _sha256(state),
            compiled=Compiled(
                quantization=quantization,
                chunk_lengths=tuple(sorted(set(chunk or [32]))),
                toolchain=toolchain,
                stage_timeout_s=stage_timeout,
            ),
            libsophon=libsophon,
            folder=runs / "lambada",
        )
        what = "the model that ships, for want of --checkpoint" if checkpoint is None else str(checkpoint)
        say(f"data        {file}, N {len(chosen)} of {len(every)}")
        say(f"checkpoint  {model.checkpoint.name}: {what}, sha256 {model.checkpoint.sha256[:16]}")
        say(f"codec       {model.codec.value}")
        if state is not None:
            say(f"state       {state}")
        scored = [_score(name, question, say) for name in names]
        comparison = compare(scored[0].results, scored[1].results) if len(scored) == 2 else None
        if as_json:
            typer.echo(_json(question, scored, comparison))
        elif comparison is not None:
            say(f"\n{comparison_words(comparison, *names)}")
        elif not scored[0].summary.accuracy_tells:
            say(hint_words(scored[0].summary))


@dataclass(frozen=True, slots=True)
class _Question:
    """Everything that is the same for both targets."""

    model: Model
    texts: dict[str, Text]
    data_sha256: str
    state: StateArrays | None
    state_sha256: str | None
    compiled: Compiled
    libsophon: Path | None
    folder: Path


@dataclass(frozen=True, slots=True)
class _Scored:
    """What one target gave."""

    target: str
    description: str
    file: Path
    summary: Summary
    results: tuple[Result, ...]


@dataclass(slots=True)
class _BoardLog:
    """Puts what is said of a board into the results file; what comes before that is open waits for it."""

    _waiting: list[tuple[Record, tuple[Reading, ...]]] = field(default_factory=list)
    _results: Results | None = None

    def __call__(self, canary: Record, health: tuple[Reading, ...]) -> None:
        if self._results is None:
            self._waiting.append((canary, health))
        else:
            self._results.note(canary, health)

    def write_to(self, results: Results) -> None:
        self._results = results
        for canary, health in self._waiting:
            results.note(canary, health)


@contextmanager
def _interruptible() -> Generator[None]:
    """Tell how to go on after Ctrl-C, with the usual exit code, and after a fault of a device."""
    try:
        yield
    except (InfraError, RuntimeFault):
        typer.echo("what was scored is kept: once that is seen to, the same command goes on from there", err=True)
        raise
    except KeyboardInterrupt:
        typer.echo("interrupted; what was scored is kept: the same command goes on from there", err=True)
        raise typer.Exit(130) from None


def _score(name: str, question: _Question, say: Callable[[str], None]) -> _Scored:
    """Score what is missing, showing how it goes."""
    model = question.model
    libsophon = question.libsophon if is_local_board(name) else None
    board = _BoardLog()
    with (
        ExitStack() as files,  # the results stay open longer than the target: a board's last word goes there too
        open_scorer(name, model, question.compiled, libsophon=libsophon, say=say, note=board) as scorer,
    ):
        key = Key(
            checkpoint_sha256=model.checkpoint.sha256,
            codec=model.codec.value,
            target={name: str(value) for name, value in scorer.identity.items()},  # torch's version is no plain str
            data_sha256=question.data_sha256,
            protocol=PROTOCOL,
            state_sha256=question.state_sha256,
        )
        header = Header(
            key=key,
            started=now(),
            harness=version("rwkv-tpu-harness"),
            checkpoint=model.checkpoint.name,
            description=scorer.description,
        )
        say(f"\ntarget      {name}: {scorer.description}")
        results = files.enter_context(open_results(question.folder, header))
        board.write_to(results)
        with _progress(name) as progress:
            say(f"results     {results.path}")
            known = sum(document in results for document in question.texts)
            if known:
                begun = f"begun {results.header.started} by version {results.header.harness}"
                say(f"{known} of {len(question.texts)} documents are in that file already, {begun}")
            bar = progress.add_task(name, total=len(question.texts), completed=known)
            done = score_documents(
                scorer,
                question.texts,
                results,
                state=question.state,
                say=say,
                advance=partial(progress.advance, bar),
            )
    summary = summarise(done)
    say(summary_words(summary))
    return _Scored(name, scorer.description, results.path, summary, done)


def _progress(name: str) -> Progress:
    """A bar on stderr where that is a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    return Progress(
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # or the lines would follow the bar to stderr
    )


def _json(question: _Question, scored: list[_Scored], comparison: Comparison | None) -> str:
    """All figures; null is infinite, or not to be had from one document."""
    fields = {
        "n": len(question.texts),
        "data_sha256": question.data_sha256,
        "checkpoint": question.model.checkpoint.name,
        "checkpoint_sha256": question.model.checkpoint.sha256,
        "codec": question.model.codec.value,
        "state_sha256": question.state_sha256,
        "protocol": PROTOCOL,
        "targets": [
            {
                "target": one.target,
                "description": one.description,
                "results": str(one.file),
                "summary": one.summary,
                "accuracy_tells": one.summary.accuracy_tells,
            }
            for one in scored
        ],
        "comparison": comparison,
        "verdict": comparison and comparison.verdict.value,
        "accuracy_tells": comparison and comparison.accuracy_tells,
    }
    return msgspec.json.format(msgspec.json.encode(fields), indent=2).decode()


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
