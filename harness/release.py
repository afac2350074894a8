"""Two compiler releases side by side: both run the grid, one report, one verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compile.tool_options import TOOLS, What, changes, tool_options
from harness.asked_folder import working_in
from harness.cases import load_grid
from harness.gate.compare import gate
from harness.gate.sides import read_side
from harness.gate.text import MOST, report_words
from harness.launches import answers, launch, set_aside
from harness.nightly.suites import sigterm_as_ctrl_c
from harness.one_price import one_price, with_prices
from harness.paths import cache_folder
from reports.html_page import write_html
from reports.lenient import load
from reports.side_by_side import figure_lines, outcome_lines, price_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from compile.tool_options import OptionChange
    from compile.toolchain import Toolchain
    from harness.gate.compare import Report
    from harness.gate.rules import Rules
    from reports.side_by_side import OnePrice

REPORT = "report.md"
VERDICT = "gate.txt"
PAGE = "index.html"
OLD, NEW = "old", "new"  # the folders of the sides


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared, and how.

    Attributes:
        folder: where everything goes.
        arguments: further ones of the suites.
        command: what runs the suites into a folder that it is given, with the arguments that it is given.
        install: gives a release's toolchain, installing it where it is not there.
        cache: where the suites leave what they compile.
        launches: how often a side runs.
        say: receives a line at a time.
    """

    folder: Path
    old: str
    new: str
    grid: str
    device: str
    arguments: Sequence[str]
    command: Callable[[Path, Sequence[str]], list[str]]
    install: Callable[[str], Toolchain]
    cache: Path
    launches: int
    rules: Rules
    allow: Sequence[str]
    say: Callable[[str], None]

    @property
    def question(self) -> dict[str, str]:
        """What the folder remembers. How often, and by which rules, may change: runs are not in vain for that."""
        return {
            "what": "release",
            "old": self.old,
            "new": self.new,
            "grid": self.grid,
            "grid_sha256": load_grid(self.grid).sha256,
            "device": self.device,
            "arguments": " ".join(self.arguments),
        }


def compare_releases(plan: Plan) -> int:
    """Install, run what is not there yet, report, gate; return the gate's exit code.

    Left by Ctrl-C, a stop or an error, the folder keeps each run that came to its end.

    Raises:
        GridError: there is no such grid.
        QuestionError, WorkingError, OSError: the folder cannot be used.
        ToolchainError: a release cannot be installed.
        LaunchError: a launch gave no answer.
    """
    with working_in(plan.folder, plan.question), sigterm_as_ctrl_c():
        toolchains = {OLD: plan.install(plan.old), NEW: plan.install(plan.new)}
        for side in toolchains:
            set_aside(plan.folder, plan.folder / side, plan.say)
        for side, number in turns({side: len(answers(plan.folder / side)) for side in toolchains}, plan.launches):
            release = toolchains[side].version
            plan.say(f"TPU-MLIR {release}, launch {number} of {plan.launches}")
            arguments = ["--grid", plan.grid, "--device", plan.device, "--toolchain", release, *plan.arguments]
            runs = plan.folder / side
            launch(plan.folder, runs, plan.command(runs, arguments), plan.say)
        old, new = read_side(plan.folder / OLD), read_side(plan.folder / NEW)
        prices = one_price(old, new, toolchains[NEW], plan.cache, plan.say)
        report = gate(*with_prices(old, new, prices), plan.rules, plan.allow)
        words = report_words(report, most=MOST)
        (plan.folder / VERDICT).write_text(words + "\n", encoding="utf-8")
        options = {tool: option_changes(tool, toolchains[OLD], toolchains[NEW]) for tool in TOOLS}
        text = "\n".join(_report(plan, toolchains, report, words, options, prices)) + "\n"
        (plan.folder / REPORT).write_text(text, encoding="utf-8")
        write_html(load([plan.folder / OLD, plan.folder / NEW]), plan.folder / PAGE, cache_folder() / "pages")
        plan.say(words)
        plan.say(f"report: {plan.folder / REPORT}")
        plan.say(f"page:   {plan.folder / PAGE}")
    return report.exit_code


def turns(done: dict[str, int], launches: int) -> Iterator[tuple[str, int]]:
    """What is still to be launched, as side and number: the sides in turns, so that a drift meets both."""
    for number in range(1, launches + 1):
        yield from ((side, number) for side, made in done.items() if made < number)


def option_changes(tool: str, old: Toolchain, new: Toolchain) -> tuple[OptionChange, ...]:
    """What became of a tool's options.

    Raises:
        ToolchainError: a release does not tell them.
    """
    return changes(tool_options(old, tool), tool_options(new, tool))


def _report(
    plan: Plan,
    toolchains: dict[str, Toolchain],
    report: Report,
    words: str,
    options: dict[str, tuple[OptionChange, ...]],
    prices: tuple[OnePrice, ...],
) -> Iterator[str]:
    sides = [[one.file for one in side.launches] for side in (report.base, report.new)]
    yield f"# TPU-MLIR {plan.new} against {plan.old}"
    yield ""
    yield f"Gate: **{words.splitlines()[-1]}**."
    yield ""
    yield "| | old | new |"
    yield "|---|---|---|"
    told = [(one.compiler_commit, one.wheel_sha256[:12]) for one in toolchains.values()]
    rows = {
        "release": (plan.old, plan.new),
        "compiler": tuple(one[0] for one in told),
        "wheel, SHA-256": tuple(one[1] for one in told),
        "launches": tuple(str(len(files)) for files in sides),
    }
    for name, (old, new) in rows.items():
        yield f"| {name} | {old} | {new} |"
    yield ""
    first = next((file.run for files in sides for file in files), None)
    if first is not None:
        checkpoint = first.checkpoint.get("name", "?")
        yield f"On {first.where}, grid {plan.grid}, checkpoint {checkpoint}. A cell reads old → new."
        yield ""
    yield "## Outcomes"
    yield ""
    yield from outcome_lines(*sides)
    yield ""
    yield "## Figures"
    yield ""
    yield from list(figure_lines(*sides)) or ["None: no check concerned a graph.", ""]
    if prices:
        yield "## One price for both"
        yield ""
        yield (
            f"Predicted, for one call. In the middle {plan.new} made code of {plan.old}'s final MLIR: the same "
            f"instructions and bytes as {plan.old}, so that it is {plan.new}'s price of {plan.old}'s code."
        )
        yield ""
        yield from price_lines(prices, plan.old, plan.new)
        yield ""
    yield "## Options of the compiler's tools"
    yield ""
    for tool, found in options.items():
        yield from _option_lines(tool, found)
    yield "## The gate"
    yield ""
    yield "```"
    yield words
    yield "```"


def _option_lines(tool: str, found: tuple[OptionChange, ...]) -> Iterator[str]:
    yield f"### {tool}"
    yield ""
    if not found:
        yield "The same, defaults included."
        yield ""
        return
    told = [one for one in found if one.what is not What.HELP]
    for one in told:
        both = f"{_code(one.old)} → {_code(one.new)}" if one.old and one.new else _code(one.old or one.new)
        yield f"- {_code(one.name)} {one.what.value}: {both}"
    others = [one.name for one in found if one.what is What.HELP]
    if others:
        yield f"- {What.HELP.value}: {', '.join(map(_code, others))}"
    yield ""


def _code(text: str) -> str:
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"
