"""The command that shows what is behind a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.gate.sides import LAMBADA_SUITE

if TYPE_CHECKING:
    from harness.gate.finding import Finding, Key
    from harness.gate.sides import Side

PREDICTED = ("predicted_", "tiu_", "gdma_", "ddr_")
"""How the names begin of what the compiler predicts; it stands in each record of a case."""

COMPILED = ("compile_", "bmodel_")
"""The same of what was told when the case was compiled."""

_CHECKPOINT = "--checkpoint"


def details_command(finding: Finding, base: Side, new: Side) -> list[str]:
    """Return a command for a shell; empty where the finding itself says all.

    Of what the compiler predicts it is the profile of NEW's case, which is compiled anew if it is not in the cache. Of
    everything else it prints the records of both sides, with their messages; of LAMBADA, documents that differ.
    """
    key = finding.key
    if not key.suite:
        return []
    run = new.launches[0].file.run if new.launches else None
    # Of somebody else's port there is nothing that could be compiled anew from the case's id.
    if run and not run.port and key.case and finding.metric.startswith(PREDICTED) and finding.new:
        return ["rwkv-tpu", "profile", key.case, *_checkpoint(run.command), "--toolchain", run.toolchain["version"]]
    if key.suite == LAMBADA_SUITE:
        files = [str(one.path) for side in (base, new) for one in side.lambada if one.name == key.check]
        return ["diff", *files] if len(files) == 2 else []
    return ["grep", "-rF", _beginning(key), str(base.path), str(new.path)]


def _beginning(key: Key) -> str:
    """How the lines of a check begin, behind their type; what is behind the name may follow, such as `` (setup)``."""
    return f'"case":"{key.case}","suite":"{key.suite}","check":"{key.check}'


def _checkpoint(command: tuple[str, ...]) -> list[str]:
    """Return the option that named the checkpoint; empty for the default one."""
    for position, word in enumerate(command):
        if word == _CHECKPOINT:
            return list(command[position : position + 2])
        if word.startswith(f"{_CHECKPOINT}="):
            return [word]
    return []
