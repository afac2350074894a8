"""What the options of the suites say of somebody else's port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.own.io_map import MapError
from harness.own.port import Port, open_port

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizer.codec import Codec


@dataclass(frozen=True, slots=True)
class Own:
    """The options ``--bmodel`` and ``--io``, as they were given."""

    bmodels: tuple[Path, ...] = ()
    io: Path | None = None

    def open(self, checkpoint: Path | None, codec: Codec | None) -> Port | None:
        """The port; None where none was named.

        Raises:
            MapError: one option without the other, or as :func:`harness.own.port.open_port`.
            BadBmodel, CheckpointError, CodecError: as there.
        """
        if not self.bmodels and self.io is None:
            return None
        if self.io is None:
            raise MapError("--bmodel needs --io MAP: nothing in the file says what its inputs and outputs are")
        if not self.bmodels:
            raise MapError(f"--io {self.io} needs --bmodel FILE: the nets that it speaks of")
        return open_port(self.bmodels, self.io, checkpoint, codec)


NOTHING = Own()
"""No port: our own graphs are judged."""
