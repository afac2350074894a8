"""Where in a TOML file of plain keys and lists a value stands: for errors that name the line."""

from __future__ import annotations

import re

_PLACE = re.compile(r"\$\.(\w+)(?:\[(\d+)\])?")
_FIELD = re.compile(r"field `(\w+)`")


def line_of_error(words: str, text: str) -> int:
    """The line, from 1, of what a validation error of msgspec is about; the first where it is about none."""
    place = _PLACE.search(words)
    if place is not None:
        return line_of(text, place[1], None if place[2] is None else int(place[2]))
    field = _FIELD.search(words)
    return line_of(text, field[1]) if field else 1


def line_of(text: str, key: str, index: int | None = None) -> int:
    """The line, from 1, of a top-level *key*, or of an element of its list; the first where the key is not there."""
    found = re.search(rf"^[ \t]*[\"']?{re.escape(key)}[\"']?[ \t]*=", text, re.MULTILINE)
    if found is None:
        return 1
    position = found.end()
    if index is not None:
        position = _element(text, position, index)
    return text.count("\n", 0, position) + 1


def _element(text: str, start: int, index: int) -> int:
    """Where the element of a list begins that is written from *start* on."""
    depth = commas = 0
    for token in re.finditer(r"\"(?:\\.|[^\"\\])*\"|'[^']*'|#[^\n]*|[\[\],]|[^\s\[\],#\"']+", text[start:]):
        mark = token[0]
        if mark.startswith("#"):
            continue
        if depth == 1 and commas == index and mark not in {"]", ","}:
            return start + token.start()
        depth += (mark == "[") - (mark == "]")
        commas += depth == 1 and mark == ","
        if not depth:
            break
    return start
