"""The option ``--stage-timeout`` of everything that compiles, on the command line and of ``pytest suites/`` alike."""

from __future__ import annotations

import argparse

LEAST_S, MOST_S = 1.0, 7 * 86_400.0  # a day more, and a machine that hangs is found by its owner

HELP = (
    "time limit for each stage of a compile, export, transform, lower and codegen; one that exceeds it fails, and is "
    "recorded with the stage's name"
)


def parse_stage_timeout(text: str) -> float:
    """Read the option, in seconds.

    Raises:
        argparse.ArgumentTypeError: it is no such number.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not LEAST_S <= seconds <= MOST_S:
        raise argparse.ArgumentTypeError(f"{text!r}: should be seconds, {LEAST_S:g} to {MOST_S:,.0f}")
    return seconds
