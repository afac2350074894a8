"""A graph that comes as an ONNX file, and is not written by us."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReadyOnnx:
    """The file, and the operations to be computed in float32 in every quantisation, by the compiler's names."""

    path: Path
    f32_operations: tuple[str, ...] = ()

    def write(self, path: Path) -> list[str]:
        """Copy it to *path*, with the files of weights that it names; returns the operations.

        Raises:
            FileNotFoundError: one of them is not beside it.
        """
        shutil.copy(self.path, path)
        graph = onnx.load(str(self.path), load_external_data=False).graph
        places = {entry.value for one in graph.initializer for entry in one.external_data if entry.key == "location"}
        for name in sorted(places):
            shutil.copy(self.path.parent / name, path.parent / name)
        return list(self.f32_operations)
