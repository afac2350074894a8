"""``docs/findings/``: every file says what it must, the index has it, and known failures point to it; and it is so."""

import re
from pathlib import Path

import numpy as np
import pytest
import typer

from compile.toolchain import ToolchainError, find
from harness.commands.finding import finding
from harness.findings.catalogue import all_reproducers, numbers
from harness.findings.reproducer import reproduce
from harness.findings.written import FINDINGS, NOT_RUN, FindingError, read_findings
from harness.known import KNOWN, parse_known
from harness.ops.expected import distance
from harness.ops.press import Press
from harness.paths import cache_folder
from runtime.libraries import Libraries

ROOT = Path(__file__).parent.parent
WRITTEN = read_findings()


def test_each_reproducer_has_its_file():
    """And each file with outcomes its reproducer."""
    assert set(all_reproducers()) == {name for name, one in WRITTEN.items() if one.has_reproducer}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_index_has_it(name):
    """With its title."""
    index = (FINDINGS / "README.md").read_text()
    assert f"]({name}.md)" in index


def test_the_index_has_nothing_else():
    """No link to a file that is gone."""
    linked = re.findall(r"\]\((\w+)\.md\)", (FINDINGS / "README.md").read_text())
    assert sorted(linked) == sorted(WRITTEN)


@pytest.mark.parametrize("path", sorted(KNOWN.glob("[0-9]*.toml")), ids=lambda path: path.stem)
def test_known_failures_link_to_a_finding(path):
    """Each entry of a release's list names a file that exists."""
    for entry in parse_known(path.read_bytes(), path):
        assert entry.link.startswith("docs/findings/"), f"{entry.title}: {entry.link!r}"
        assert (ROOT / entry.link).is_file(), f"{entry.title}: {entry.link} does not exist"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# no head", "should begin with TOML"),
        ('+++\ntitle = "x"\n+++\n', "missing required field"),
        ('+++\ntitle = "x"\nstage = "lower"\nsilent = true\nharness = "x"\nseen = "x"\n+++\n', "has no section"),
    ],
)
def test_a_file_that_lacks_something(tmp_path, text, words):
    """The error names it."""
    (tmp_path / "a_fault.md").write_text(text)
    with pytest.raises(FindingError, match=f"a_fault.md.*{words}"):
        read_findings(tmp_path)


def test_a_name_that_is_none():
    """The command says which there are."""
    with pytest.raises(typer.BadParameter, match="trilu_diagonal"):
        finding("nothing")


@pytest.mark.long
@pytest.mark.toolchain
@pytest.mark.parametrize("release", sorted({release for one in WRITTEN.values() for release in one.about.releases}))
def test_every_outcome_is_as_recorded(release):
    """Run again, each reproducer ends as its file says: a fault that was mended shows here."""
    try:
        toolchain = find(release, cache_folder())
    except ToolchainError as error:
        pytest.skip(str(error))
    with Press(toolchain, Libraries.cmodel(toolchain.libraries)) as press:
        for name, one in all_reproducers().items():
            recorded = WRITTEN[name].about.releases.get(release, {})
            got = reproduce(one, press).outcome
            told = {arrow: outcome for arrow, outcome in recorded.items() if outcome != NOT_RUN}
            assert {arrow: got[arrow] for arrow in told} == told, name


@pytest.mark.long
@pytest.mark.toolchain
def test_what_a_group_of_one_sign_becomes(toolchain):
    """The group's own range in 255 steps, with the zero point cut to 0, and codes above 255 cut: so it is explained."""
    one = all_reproducers()["group_of_one_sign"]
    with Press(toolchain, Libraries.cmodel(toolchain.libraries)) as press:
        (got,) = reproduce(one, press).results["tpu"]
    x, w = one.inputs[0].astype(np.float64), np.abs(numbers(128, 64, seed=1)) + np.float32(0.5)
    groups = w.reshape(2, 64, 64)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    step = (high - low) / 255
    zero = np.clip(np.rint(-low / step), 0, 255)
    kept = (np.clip(np.rint(groups / step) + zero, 0, 255) - zero) * step
    assert distance([x @ kept.reshape(128, 64)], [got]).nmse <= 1e-6
