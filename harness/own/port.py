"""Somebody else's port in place of our own graphs: the cases that it has, and an engine's contract for them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from compile.host_embedding import host_table
from compile.stages import hash_file
from harness.cases import Case, Grid
from harness.checkpoints import open_model
from harness.own.io_map import IoMap, LayerNorm, load_map
from harness.own.match import graphs_of, matched
from runtime.description import describe
from runtime.nets import check_agreement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    import numpy as np

    from harness.checkpoints import Model
    from runtime.engine import Assemble
    from runtime.nets import Net
    from tokenizer.codec import Codec


@dataclass(frozen=True, slots=True)
class Port:
    """Bmodel files, the map that says what their nets take and give, and the checkpoint that they are judged by.

    Attributes:
        io: the map.
        model: the reference.
        files: bmodels, with their SHA-256.
    """

    io: IoMap
    model: Model
    files: Mapping[Path, str]

    @property
    def grid(self) -> Grid:
        """A case for each net of the map, whose name stands where ours have a variant.

        It is the same from build to build of the port; which build it is, :attr:`identity` tells.
        """
        cases = [self._case(graph) for name in self.io.file.nets for graph in graphs_of(self.io, name)]
        cases = sorted(cases, key=lambda case: case.graph.kind.value)
        sha256 = hashlib.sha256("\n".join(case.id for case in cases).encode()).hexdigest()
        return Grid(self.io.file.name, sha256, tuple(cases))

    @property
    def identity(self) -> dict[str, str]:
        """What a run keeps of it: SHA-256 of the map and of the files."""
        return {"map_sha256": self.io.sha256, "files_sha256": ", ".join(self.files.values())}

    @property
    def embedding(self) -> np.ndarray | None:
        """The table ``[V, C]``, float32, whose rows the nets take; None where the embedding is in them."""
        entry = self.io.file.embedding
        if entry is None:
            return None
        arrays = self.model.arrays
        return host_table(arrays) if entry.layer_norm is LayerNorm.HOST else arrays["emb.weight"]

    def _case(self, graph: Any) -> Case:
        return Case(graph=graph, quantization=self.io.file.precision, variant=self.io.file.name)

    def sha256_of(self, case: Case) -> str:
        """Of the file that has the case's net."""
        net = self.net_of(case)
        return next(sha for path, sha in self.files.items() if any(one["name"] == net for one in describe(path)))

    def net_of(self, case: Case) -> str:
        """The port's own name for a case's net."""
        return next(name for name in self.io.file.nets if case.graph in graphs_of(self.io, name))

    def contract(self, cases: Sequence[Case], *, types: bool = True) -> Assemble:
        """Reads the nets of *cases* out of what the worker describes, and no others; see `matched` for *types*."""
        return partial(_read, self, tuple(cases), types=types)


def _read(
    port: Port, cases: Sequence[Case], described: Sequence[tuple[Mapping[str, Any], str]], *, types: bool
) -> tuple[Net, ...]:
    wanted = {case.graph.name for case in cases}
    names = list(dict.fromkeys(map(port.net_of, cases)))
    nets = matched(port.io, described, port.model.checkpoint.shape, only=names, types=types)
    return tuple(net for net in nets if net.name in wanted)


def open_port(bmodels: Sequence[Path], io: Path, checkpoint: Path | None, codec: Codec | None) -> Port:
    """Read the map, the checkpoint and the files' own descriptions, and see that they agree; no device is needed.

    Args:
        bmodels: one file or more.
        io: the map.
        checkpoint: the reference, in place of the map's.
        codec: of its ids, in place of the map's.

    Raises:
        MapError: the map makes no sense, or does not agree with the files.
        BadBmodel: a file is no bmodel, or its nets do not go together.
        CheckpointError, CodecError: the checkpoint is none, or the codec does not fit it.
    """
    read = load_map(io)
    model = open_model(reference_of(read, checkpoint), codec or read.file.codec)
    described = [(net, str(path)) for path in bmodels for net in describe(path)]
    names = [net["name"] for net, _ in described]
    for name in read.file.nets:
        if names.count(name) > 1:
            read.refuse(f"expected one net {name} in all files, found {names.count(name)}", f"nets.{name}")
    check_agreement(matched(read, described, model.checkpoint.shape))
    return Port(read, model, {path: hash_file(path) for path in bmodels})


def reference_of(io: IoMap, checkpoint: Path | None) -> Path:
    """The checkpoint that a port is judged by: the one that was asked for, or the map's.

    Raises:
        MapError: neither is there.
    """
    if checkpoint is not None:
        return checkpoint
    if io.checkpoint is None:
        io.refuse("checkpoint: expected the port's checkpoint here or by --checkpoint, found neither", "", "checkpoint")
    if not io.checkpoint.exists():
        io.refuse(f"checkpoint: expected a file or folder, found nothing at {io.checkpoint}", "", "checkpoint")
    return io.checkpoint
