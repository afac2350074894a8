"""``rwkv-tpu bisect``: since which compiler release is a case wrong?"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compile.options import OptionError
from compile.releases import OrderError, ReleasesError, between, published
from harness.asked_folder import QuestionError, WorkingError, working_in
from harness.bisection import Answer, EndError
from harness.bisection import bisect as find_boundary
from harness.cases import CaseError, parse_case
from harness.commands.release import ArgumentError, check_arguments, install_and_say
from harness.gate.finding import Kind
from harness.launches import LaunchError
from harness.nightly.suites import sigterm_as_ctrl_c, suites_command
from harness.trial import GRID, Trial, Trier, write_grid

if TYPE_CHECKING:
    from harness.bisection import Boundary

CHECKS = "test_parity or test_state"
_DOUBTFUL = 1
_OURS = ("--toolchain", "--runs", "--grid", "--device", "-k")


def bisect(
    case: Annotated[str, typer.Argument(help="a case's id, such as prefill_16-F16-chunk", metavar="CASE")],
    old: Annotated[str, typer.Argument(help="a release of which it is good", metavar="OLD")],
    new: Annotated[str, typer.Argument(help="a later one of which it is bad", metavar="NEW")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="options of pytest suites/, behind --", metavar="[-- OPTION…]")
    ] = None,
    releases: Annotated[
        str | None,
        typer.Option(help="those between the two (default: as pip lists them)", metavar="A,B,…", show_default=False),
    ] = None,
    checks: Annotated[str, typer.Option("-k", help="which checks decide, as with pytest", metavar="WORDS")] = CHECKS,
    device: Annotated[
        str, typer.Option(help="where bmodels run, as with pytest suites/", metavar="cmodel|N|ssh://…")
    ] = "cmodel",
    out: Annotated[
        Path | None,
        typer.Option(help="where the runs go (default: runs/bisect-CASE)", metavar="FOLDER", show_default=False),
    ] = None,
) -> None:
    """Find the first release, after OLD and up to NEW, of which a check of CASE fails.

    Each release that is tried is installed, 3.6 GB; one that cannot be, or whose run has no verdict, is skipped and
    named. The same command goes on where it was interrupted.

    0: found. 1: found up to releases that were skipped. 3: nothing to find, for OLD is bad or NEW is good; or a mistake
    in usage. 4: OLD or NEW cannot be tried, the releases cannot be listed, or interrupted.

    Examples:
        rwkv-tpu bisect prefill_16-F16-chunk 1.24 1.30.2

        rwkv-tpu bisect decode-W4F16-chunk 1.28.1 1.30.2 --releases 1.29,1.30 -k parity -- --checkpoint rwkv7.pth
    """
    folder = out or Path("runs") / f"bisect-{case}"
    try:
        check_arguments(arguments or [], _OURS)
        parsed = parse_case(case)
        row = between(old, new, published() if releases is None else releases.replace(",", " ").split())
        typer.echo(f"releases: {', '.join(row)}")
        own = ["--grid", str(folder / GRID), "--device", device, "-k", f"({checks}) and [{case}]", *(arguments or [])]
        trier = Trier(folder=folder, arguments=own, command=suites_command, install=install_and_say, say=typer.echo)
        question = {"what": "bisect", "case": case, "arguments": shlex.join(own)}
        with working_in(folder, question), sigterm_as_ctrl_c():
            write_grid(folder, parsed)
            code = _find(trier, row)
    except (ArgumentError, CaseError, OptionError, OrderError, QuestionError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(Kind.NOT_COMPARABLE.exit_code) from error
    except LaunchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.kind.exit_code) from error
    except (ReleasesError, WorkingError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(Kind.INFRA.exit_code) from error
    except KeyboardInterrupt:
        typer.echo(f"interrupted: the same command goes on in {folder}", err=True)
        raise typer.Exit(Kind.INFRA.exit_code) from None
    raise typer.Exit(code)


def _find(trier: Trier, row: tuple[str, ...]) -> int:
    """Search, say what came of it, and return the exit code."""
    tried: dict[str, Trial] = {}

    def ask(release: str) -> Answer:
        trier.say(f"trying TPU-MLIR {release}")
        tried[release] = trier.run(release)
        trier.say(f"TPU-MLIR {release} is {tried[release].words}")
        return tried[release].answer

    try:
        found = find_boundary(row, ask)
    except EndError as error:
        trier.say("")
        trier.say(f"nothing found: {error.name} is {tried[error.name].words}, but should be {error.wanted.value}")
        trier.say(_reproduce(trier, error.name))
        cannot_be_told = error.found is Answer.SKIP
        return Kind.INFRA.exit_code if cannot_be_told else Kind.NOT_COMPARABLE.exit_code
    _say_boundary(trier, tried, found)
    return _DOUBTFUL if found.doubtful else 0


def _say_boundary(trier: Trier, tried: dict[str, Trial], found: Boundary) -> None:
    trier.say("")
    for name, release in (("first bad", found.first_bad), ("last good", found.last_good)):
        trier.say(f"{name:<10} {release}  {tried[release].why}".rstrip())
        trier.say(_reproduce(trier, release))
    for release in found.doubtful:
        trier.say(f"{'skipped':<10} {release}  {tried[release].why}")
    if found.doubtful:
        trier.say(f"The first bad one is {' or '.join([*found.doubtful, found.first_bad])}.")


def _reproduce(trier: Trier, release: str) -> str:
    return (
        f"  $ rwkv-tpu toolchain install {release} && {shlex.join(['pytest', 'suites/', *trier.arguments_of(release)])}"
    )
