"""What the options of the suites say of somebody else's port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.own.io_map import MapError
from harness.own.onnx_port import open_onnx_port
from harness.own.port import Port, open_port

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizer.codec import Codec


@dataclass(frozen=True, slots=True)
class Own:
    """The options ``--bmodel``, ``--onnx`` and ``--io``, as they were given."""

    bmodels: tuple[Path, ...] = ()
    io: Path | None = None
    onnx: tuple[Path, ...] = ()

    def open(self, checkpoint: Path | None, codec: Codec | None) -> Port | None:
        """The port; None where none was named.

        Raises:
            MapError: one option without the other, or as :func:`harness.own.port.open_port`.
            BadBmodel, CheckpointError, CodecError: as there.
        """
        if not self.bmodels and not self.onnx and self.io is None:
            return None
        if self.bmodels and self.onnx:
            raise MapError("--bmodel and --onnx: should be one of them, compiled already or to be compiled here")
        if self.io is None:
            option = "--bmodel" if self.bmodels else "--onnx"
            raise MapError(f"{option} needs --io MAP: nothing in the file says what its inputs and outputs are")
        if self.onnx:
            return open_onnx_port(self.onnx, self.io, checkpoint, codec)
        if not self.bmodels:
            raise MapError(f"--io {self.io} needs --bmodel FILE or --onnx FILE: the nets that it speaks of")
        return open_port(self.bmodels, self.io, checkpoint, codec)


NOTHING = Own()
"""No port: our own graphs are judged."""
