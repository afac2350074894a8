"""A list of expected failures, brought in line with what a run found; everything that still holds stays as written."""

from __future__ import annotations

import glob
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from harness.gate.finding import Key
from harness.gate.sides import CANARY_SUITE
from harness.known import HEADER, Entry, Known, KnownError, name_and_part, parse_known
from reports.schema import Outcome, Stage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from reports.schema import Record, RunFile

_COMPILE = (Stage.EXPORT, Stage.TRANSFORM, Stage.LOWER, Stage.CODEGEN)
_STAGE = re.compile(r"""(?m)^(\s*stage\s*=\s*)(?:"[^"]*"|'[^']*')""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """What the entries say that an update makes."""

    reason: str
    link: str
    since: date
    look_again: date


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What an update makes of a list.

    Attributes:
        text: the new list.
        entries: what it says.
        added: those of them that are of checks without an entry before.
        notes: what was done and what could not be, in words.
    """

    text: str
    entries: tuple[Entry, ...]
    added: tuple[Entry, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Block:
    """A piece of the file: an entry with the comment directly above it, or lines that belong to none.

    Attributes:
        made: whether it was written here: what was there stays to the letter.
    """

    text: str
    entry: Entry | None = None
    made: bool = False


def updated(text: str, path: Path, run: RunFile, why: Why) -> Update:
    """Bring a list in line with a run that came to its end; *path* is the list's name in an error.

    An entry goes where all its checks pass, or none is left; where they all fail at one other stage, that takes the
    old one's place; where only some of them fail so, it is replaced by entries for these. Checks that fail without an
    entry get one: a case as a whole where it does not compile, else check by check. An entry stays, to the letter, of
    which no check was made, or one was left without a verdict.

    Raises:
        KnownError: the list makes no sense, or is written in a way that cannot be changed here.
    """
    blocks = _blocks(text, path)
    stages, untold = _verdicts(run.records)
    notes: list[str] = []
    while (step := _step(blocks, run, stages, untold)) is not None:  # what an entry leaves may fall to one behind it
        blocks, note = step
        notes.append(note)
    added = _added(blocks, run, stages, why)
    notes += [f"added: {entry.title}, at {entry.stage.value}" for entry in added]
    notes += [f"left out: {' '.join(filter(None, key))}: {words}" for key, words in sorted(untold.items())]
    blocks += [_Block(written(entry), entry, made=True) for entry in added]
    entries = _entries(blocks)
    told = _joined(blocks)
    if parse_known(told.encode(), path) != entries:
        raise KnownError(f"{path}: is written in a way that cannot be changed here; write it as docs/known.md shows")
    return Update(text=told, entries=entries, added=added, notes=tuple(notes))


def _blocks(text: str, path: Path) -> list[_Block]:
    """Cut a list into pieces; the comment on its first line is the file's own."""
    entries = parse_known(text.encode(), path)
    lines = text.splitlines(keepends=True)
    heads = [number for number, line in enumerate(lines) if HEADER.match(line)]
    if len(heads) != len(entries):
        raise KnownError(f"{path}: has {len(entries)} entries, but {len(heads)} lines [[known]]: write each under one")
    blocks, done = [], 0
    for head, end, entry in zip(heads, [*heads, len(lines)][1:], entries, strict=True):
        begin = head
        while begin > 0 and _is_comment(lines[begin - 1]):
            begin -= 1
        begin = begin or head
        last = max(number for number in range(head, end) if lines[number].strip() and not _is_comment(lines[number]))
        stop = next((number for number in range(last + 1, end) if lines[number].strip()), end)
        blocks += [_Block("".join(lines[done:begin])), _Block("".join(lines[begin:stop]), entry)]
        done = stop
    return [*blocks, _Block("".join(lines[done:]))]


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _verdicts(records: Sequence[Record]) -> tuple[dict[Key, Stage | None], dict[Key, str]]:
    """The stage at which each check failed, None where it passed; and checks of which nothing can be told, and why."""
    stages: dict[Key, Stage | None] = {}
    untold: dict[Key, str] = {}
    for record in records:
        if record.suite == CANARY_SUITE or record.outcome is Outcome.SKIPPED:
            continue
        name, part = name_and_part(record)
        key = Key(record.case, record.suite, name)
        if record.outcome is Outcome.INFRA:
            untold[key] = "no verdict, the device or the host was sick (INFRA)"
        elif part:
            untold[key] = f"failed in its {part}, which is never expected"
        elif record.outcome is Outcome.PASSED:
            stages[key] = None
        elif record.stage is None:
            untold[key] = "failed before any stage, which is never expected"
        else:
            stages[key] = record.stage
    return {key: stage for key, stage in stages.items() if key not in untold}, untold


def _step(
    blocks: Sequence[_Block], run: RunFile, stages: Mapping[Key, Stage | None], untold: Collection[Key]
) -> tuple[list[_Block], str] | None:
    """Change the first entry that does not hold, and say so; None where all of them do."""
    mine = _assigned(blocks, run, [*stages, *untold])
    unmatched = run.end.unmatched if run.end is not None else ()
    for number, block in enumerate(blocks):
        if (entry := block.entry) is None:
            continue
        keys = mine.get(entry, [])
        found = {key: stages[key] for key in keys if key in stages}
        if not keys and entry.title in unmatched:
            became: list[_Block] = []
            note = f"removed: {entry.title}: matches nothing any more"
        elif len(found) < len(keys) or all(stage is entry.stage for stage in found.values()):
            continue
        else:
            others = [one for one in blocks if one is not block]
            became, note = _changed(block, entry, found, {str(one.patterns) for one in _entries(others)})
        return [*blocks[:number], *became, *blocks[number + 1 :]], note
    return None


def _assigned(blocks: Sequence[_Block], run: RunFile, keys: Iterable[Key]) -> dict[Entry, list[Key]]:
    """The checks of this run that each entry decides about."""
    name = str(run.run.checkpoint.get("name", ""))
    known = Known(entries=tuple(entry for entry in _entries(blocks) if entry.concerns(name, run.run.target)))
    found: dict[Entry, list[Key]] = defaultdict(list)
    for key in keys:
        if (entry := known.entry_for(key)) is not None:
            found[entry].append(key)
    return found


def _changed(
    block: _Block, entry: Entry, found: Mapping[Key, Stage | None], taken: Collection[str]
) -> tuple[list[_Block], str]:
    """What takes the place of an entry that does not hold, and that in words; none has patterns that are *taken*."""
    stages = set(found.values())
    failing = {key: stage for key, stage in found.items() if stage is not None}
    if not failing:
        return [], f"removed: {entry.title}: passes"
    if len(stages) == 1:
        (stage,) = set(failing.values())
        text = _STAGE.sub(rf'\g<1>"{stage.value}"', block.text, count=1)
        note = f"changed: {entry.title}: fails at {stage.value}, not at {entry.stage.value}; see if its reason holds"
        return [_Block(text, msgspec.structs.replace(entry, stage=stage))], note
    narrowed: list[_Block] = []
    for key, stage in _grouped(failing, found).items():
        names = {"cases": glob.escape(key.case)} | ({"suite": key.suite, "check": key.check} if key.check else {})
        one = msgspec.structs.replace(entry, stage=stage, **names)
        if str(one.patterns) not in taken:
            narrowed.append(_Block(("" if narrowed else _comment(block)) + written(one), one, made=True))
    return narrowed, f"narrowed: {entry.title}: {len(failing)} of {len(found)} checks fail, at {_stages(failing)}"


def _comment(block: _Block) -> str:
    """The comment above an entry."""
    lines = block.text.splitlines(keepends=True)
    return "".join(lines[: next(number for number, line in enumerate(lines) if HEADER.match(line))])


def _stages(failing: Mapping[Key, Stage]) -> str:
    return ", ".join(stage.value for stage in Stage if stage in failing.values())


def _grouped(failing: Mapping[Key, Stage], found: Mapping[Key, Stage | None]) -> dict[Key, Stage]:
    """Failing checks; a case as a whole, without suite and check, where all that was *found* of it does not compile."""
    grouped = {}
    for key, stage in failing.items():
        of_case = {other for one, other in found.items() if one.case == key.case}
        whole = of_case == {stage} and stage in _COMPILE
        grouped[Key(key.case, "", "") if whole else key] = stage
    return grouped


def _added(blocks: Sequence[_Block], run: RunFile, stages: Mapping[Key, Stage | None], why: Why) -> tuple[Entry, ...]:
    """Entries for checks that fail and have none."""
    listed = {key for keys in _assigned(blocks, run, stages).values() for key in keys}
    failing = {key: stage for key, stage in stages.items() if stage is not None and key not in listed}
    checkpoint = glob.escape(str(run.run.checkpoint.get("name", "*")))
    return tuple(
        Entry(
            cases=glob.escape(key.case),
            suite=key.suite or "*",
            check=key.check or "*",
            checkpoint=checkpoint,
            target="*" if stage in _COMPILE else glob.escape(run.run.target),  # the compiler knows no target
            stage=stage,
            reason=why.reason,
            link=why.link,
            since=why.since,
            look_again=why.look_again,
        )
        for key, stage in _grouped(failing, stages).items()
    )


def _entries(blocks: Iterable[_Block]) -> tuple[Entry, ...]:
    return tuple(block.entry for block in blocks if block.entry is not None)


def written(entry: Entry) -> str:
    """An entry as a piece of a list; patterns that take everything are left out."""
    patterns = [(name, pattern) for name, pattern in entry.patterns.items() if name == "cases" or pattern != "*"]
    texts = [*patterns, ("stage", entry.stage.value), ("reason", entry.reason), ("link", entry.link)]
    lines = [f"{name} = {_quoted(text)}" for name, text in texts if text or name == "cases"]
    lines += [f"since = {entry.since.isoformat()}", f"look_again = {entry.look_again.isoformat()}"]
    return "\n".join(["[[known]]", *lines, ""])


def _quoted(text: str) -> str:
    """A text as TOML writes it: as JSON does, but that the delete character is no part of it as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _joined(blocks: Iterable[_Block]) -> str:
    """The file: with an empty line on either side of what was written here."""
    text, made = "", False
    for block in blocks:
        if not block.text:
            continue
        if text and (made or block.made):
            text = f"{text.rstrip()}\n\n"
        text += block.text.lstrip("\n") if made else block.text
        made = block.made
    return text
