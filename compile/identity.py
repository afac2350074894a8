"""What determines a compile, as hashes: a cached result must never answer for another model."""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from compile.dims import Arrays
    from compile.graphs.model import Rwkv7

_HERE = Path(__file__).parent


def hash_arrays(arrays: Arrays) -> str:
    """SHA-256 over names, shapes, dtypes and values: the arrays themselves, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def hash_graph_source(graph: type[Rwkv7]) -> str:
    """SHA-256 over all that turns arrays into ONNX: our sources, a variant's own, and the exporting libraries."""
    files = {*_HERE.glob("graphs/*.py"), _HERE / "export.py", _HERE / "dims.py"}
    # A variant overrides pieces of the graph in a file of its own, wherever that lies.
    pieces = [graph, graph.block, graph.block.time_mix, graph.block.channel_mix]
    for piece in pieces:
        files |= {Path(inspect.getfile(base)) for base in piece.__mro__ if base is not object and _is_ours(base)}
    digest = hashlib.sha256(f"{graph.__module__}.{graph.__qualname__}\n".encode())
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    digest.update(f"torch {version('torch')} onnx {version('onnx')}".encode())
    return digest.hexdigest()


def _is_ours(cls: type) -> bool:
    return not cls.__module__.startswith("torch.")
