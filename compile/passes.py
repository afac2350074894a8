"""The passes of a release's compiler, with their options and defaults, from the descriptions that it ships.

They are what LLVM's tablegen wrote of the passes' definitions: nothing is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from compile.tool_options import ToolOption
from compile.toolchain import ToolchainError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from compile.toolchain import Toolchain

_FOLDER = "passes_json"


def passes(toolchain: Toolchain) -> dict[str, ToolOption]:
    """All passes, by the names that ``tpuc-opt`` has for them, and their options, by ``pass option``.

    Raises:
        ToolchainError: the release does not describe them, or in another format.
    """
    files = sorted((toolchain.package / _FOLDER).glob("*.json"))
    found: dict[str, ToolOption] = {}
    for file in files:
        try:
            found |= dict(_described(file))
        except (OSError, msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
            raise ToolchainError(f"tpu_mlir {toolchain.version}: {file} does not describe passes: {error!r}") from error
    if not found:
        raise ToolchainError(
            f"tpu_mlir {toolchain.version} describes no passes: nothing in {toolchain.package / _FOLDER}"
        )
    return found


def _described(file: Path) -> Iterator[tuple[str, ToolOption]]:
    records: dict[str, Any] = msgspec.json.decode(file.read_bytes())
    for record in records.values():
        if not isinstance(record, dict) or "Pass" not in record.get("!superclasses", ()):
            continue
        name = record["argument"]
        yield name, ToolOption(names=(name,), value="", help=record["summary"])
        for reference in record["options"]:
            option = records[reference["def"]]
            key = f"{name} {option['argument']}"
            told = {"value": option["type"], "help": option["description"], "default": option["defaultValue"]}
            yield key, ToolOption(names=(key,), **told)
