"""``rwkv-tpu doctor``: what is there, what works, what to do next."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from harness.device import quarantine
from harness.device.board import locate_board
from harness.device.place import place_of, state_folder
from harness.device.remote.address import SCHEME, RemoteAddress
from harness.doctor import Finding, Health, Scope, examine

_COLOURS = {Health.OK: "green", Health.MISSING: "yellow", Health.BROKEN: "red", Health.UNKNOWN: "dim"}


def doctor(
    device: Annotated[
        int | None, typer.Option(min=0, help="a board that has to work; without it, the simulator does", metavar="N")
    ] = None,
    libsophon: Annotated[
        Path | None, typer.Option(help="the board's libsophon, where it is not in /opt/sophon", metavar="DIR")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="check every file of the compilers, compile and run something too (minutes)")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
    lift: Annotated[
        str | None,
        typer.Option(help="end the quarantine of a board, here or distant, and do nothing else", metavar="N|ssh://…"),
    ] = None,
    forget_answer: Annotated[
        bool, typer.Option("--forget-answer", help="with --lift: drop the canary's known answer and time as well")
    ] = False,
) -> None:
    """Tell what is installed, what is found, what works and what to do next.

    Exits with 1 where something that is needed is missing or broken. A board is needed only with --device.

    Examples:
        rwkv-tpu doctor

        rwkv-tpu doctor --device 0 --deep

        rwkv-tpu doctor --lift 0

        rwkv-tpu doctor --lift ssh://user@host/0
    """
    if lift is not None:
        folder = _state_of(lift, libsophon)
        entry = quarantine.lift(folder)
        if forget_answer:
            from harness.device.canary import forget

            forget(folder)
        told = "was not in quarantine" if entry is None else f"free again; it was in for: {entry.reason}"
        typer.echo(f"board {lift}: {told}")  # an address has no password: reading it would have failed
        return
    findings = []
    console = Console(highlight=False, markup=False, soft_wrap=True)
    every = examine(Scope(device=device, libsophon=libsophon, deep=deep))
    for section, group in groupby(every, key=lambda finding: finding.section):
        if not as_json:
            console.print(f"\n{section}", style="bold")
        for finding in group:
            findings.append(finding)
            if not as_json:
                _show(console, finding)
    stops = [finding for finding in findings if finding.stops]
    if as_json:
        fields = {"well": not stops, "findings": findings}
        typer.echo(msgspec.json.format(msgspec.json.encode(fields), indent=2).decode())
    else:
        names = ", ".join(f"{finding.section}: {finding.what}" for finding in stops)
        console.print(f"\nneeded, and not well: {names}" if stops else "\neverything that is needed works")
    if stops:
        raise typer.Exit(1)


def _state_of(board: str, libsophon: Path | None) -> Path:
    """The folder of what is kept here about a board; a distant one need not answer."""
    if board.startswith(SCHEME):
        if libsophon is not None:
            raise typer.BadParameter("the address is to be as in the run: ?libsophon=/DIR behind it, no --libsophon")
        return state_folder(RemoteAddress.parse(board).name)
    if not (board.isascii() and board.isdecimal()):
        raise typer.BadParameter(f"--lift {board}: should be the number of a board, or {SCHEME}user@host/N")
    return place_of(locate_board(int(board), libsophon)).state_folder


def _show(console: Console, finding: Finding) -> None:
    console.print(f"  {finding.health.value:<8}", style=_COLOURS[finding.health], end="")
    console.print(f"{finding.what}: {finding.detail}")
    for line in finding.next.splitlines():
        console.print(f"          -> {line}", style="cyan")
