"""Vega-Lite for the plots of a page and DataTables for its table, as script elements."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING

import vl_convert

if TYPE_CHECKING:
    from pathlib import Path

_SNIPPET = "window.vegaEmbed = vegaEmbed;"


@lru_cache(1)
def libraries(cache: Path | None) -> str:
    """Return both; *cache* is a folder where the bundle of the plots is kept, which takes two seconds to make."""
    tables = files("itables").joinpath("html/dt_bundle.js").read_text(encoding="utf-8")
    name = re.search(r"[{,](\w+) as default[,}]", tables)
    if name is None:
        raise RuntimeError("itables: the bundle should export DataTables as 'default'; is it the pinned version?")
    # In strings, the only place of it here, both are the same; in a script element, the first opens a comment.
    tables = tables.replace("<!--", "\\x3c!--")
    scripts = [_vega(cache), f"{tables}\nwindow.DataTable = {name[1]};"]
    if any(ending in script.lower() for script in scripts for ending in ("</script", "<!--")):
        raise RuntimeError("a library's text would end its script element; are these the pinned versions?")
    return "\n".join(f'<script type="module">{script}</script>' for script in scripts)


def _vega(cache: Path | None) -> str:
    if cache is None:
        return vl_convert.javascript_bundle(_SNIPPET)
    kept = cache / f"vega-of-vl-convert-{version('vl-convert-python')}.js"
    # What does not fit its hash, or cannot be kept, is made again.
    with suppress(OSError, UnicodeDecodeError):
        sha256, _, script = kept.read_text(encoding="utf-8").partition("\n")
        if sha256 == _hash(script):
            return script
    script = vl_convert.javascript_bundle(_SNIPPET)
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
        part.write_text(f"{_hash(script)}\n{script}", encoding="utf-8")
        part.replace(kept)
    return script


def _hash(script: str) -> str:
    return hashlib.sha256(f"{_SNIPPET}\n{script}".encode()).hexdigest()
