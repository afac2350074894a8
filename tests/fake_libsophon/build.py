"""Builds the fake libsophon, and bmodels for it.

The libraries have the vendor's names and signatures, so that :meth:`runtime.libraries.Libraries.board` takes their
folder for a board's. What a fake net computes stands in libbmrt.c, and once more in Python in the tests.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.binding import Dtype
from runtime.bmodel import HEADER, MAGIC
from runtime.libraries import Libraries

SOURCES = Path(__file__).resolve().parent
COMPILER = "2.2+v0.0.0-20260101"


@dataclass(frozen=True, kw_only=True)
class FakeNet:
    """A net: inputs and outputs by name, type and shape."""

    name: str
    inputs: tuple[tuple[str, Dtype, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, Dtype, tuple[int, ...]], ...]
    addr_mode: int = 0
    stages: int = 1
    dynamic: bool = False
    instant: bool = False
    """Whether to leave out all work that is not needed for the numbers that the tests look at."""

    def lines(self) -> list[str]:
        """Its lines in the file."""

        def port(kind: str, name: str, dtype: Dtype, shape: tuple[int, ...]) -> str:
            return " ".join([kind, name, str(dtype.value), *map(str, shape)])

        head = f"net {self.name} {self.addr_mode} {self.stages} {self.dynamic:d} {self.instant:d}"
        return [head, *(port("in", *p) for p in self.inputs), *(port("out", *p) for p in self.outputs)]


@dataclass(frozen=True, kw_only=True)
class FakeModel:
    """Sizes and types of a model, from which its nets follow."""

    layers: int = 2
    C: int = 128
    N: int = 64
    vocabulary: int = 320
    state_dtype: Dtype = Dtype.F32
    logits_dtype: Dtype = Dtype.F32
    addr_mode: int = 0
    instant: bool = False
    rows_dtype: Dtype | None = None
    """Of rows of the embedding, where whole nets take them in place of tokens."""

    def _states(self, layers: int) -> tuple[tuple[str, Dtype, tuple[int, ...]], ...]:
        shapes = [(1, self.C), (self.C // self.N, self.N, self.N), (1, self.C)]
        return tuple((f"s{i}", self.state_dtype, shapes[i % 3]) for i in range(3 * layers))

    def whole(self, T: int = 1, *, every_position: bool = False, name: str = "") -> FakeNet:
        """The net of the whole model for T tokens."""
        states = self._states(self.layers)
        logits = ("logits", self.logits_dtype, (T if every_position else 1, self.vocabulary))
        first = ("token", Dtype.I32, (1, T))
        if self.rows_dtype is not None:
            first = ("embedding", self.rows_dtype, (1, T, self.C))
        return FakeNet(
            name=name or f"{'all' if every_position else 'net'}_{T}",
            inputs=(first, *states),
            outputs=(logits, *states),
            addr_mode=self.addr_mode,
            instant=self.instant,
        )

    def blocks(self, T: int = 1, *, every_position: bool = False) -> list[FakeNet]:
        """The nets of all blocks for T tokens."""
        x = ("x", self.state_dtype, (1, T, self.C))
        v_first = ("v_first", self.state_dtype, (1, T, self.C))
        states = self._states(1)
        logits = ("logits", self.logits_dtype, (T if every_position else 1, self.vocabulary))
        nets = [("embed", (("token", Dtype.I32, (1, T)),), (x,))]
        for i in range(self.layers):
            passed_on = (v_first,)
            nets.append(
                (
                    f"block_{i}",
                    (x, *states, *(passed_on if i else ())),
                    (x, *states, *(() if i else passed_on)),
                )
            )
        nets.append(("head", (x,), (logits,)))
        return [
            FakeNet(name=f"{name}_{T}", inputs=inputs, outputs=outputs, addr_mode=self.addr_mode)
            for name, inputs, outputs in nets
        ]


def build_libraries(folder: Path, without: tuple[str, ...] = ()) -> Path:
    """Compile both libraries into *folder*, but not the functions *without*.

    Raises:
        FileNotFoundError: there is no C compiler.
        subprocess.CalledProcessError: the compiler refuses; its words are on standard error.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("no C compiler named cc on the PATH")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("libbmlib", "libbmrt"):
        subprocess.run(
            [
                compiler, "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror",
                *(f"-DWITHOUT_{function}" for function in without),
                str(SOURCES / f"{name}.c"), "-o", str(folder / f"{name}.so"), "-lpthread",
            ],
            check=True,
        )  # fmt: skip
    return folder


def fake_board(folder: Path, without: tuple[str, ...] = ()) -> Libraries:
    """Libraries of a fake board, built in *folder*. Without a C compiler tests skip, and in CI they fail."""
    try:
        return Libraries.board(build_libraries(folder, without))
    except FileNotFoundError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


def write_bmodel(path: Path, *nets: FakeNet, chip: str = "BM1684X", compiler: str = COMPILER, refuse: str = "") -> Path:
    """Write a file that both our reader of bmodels and the fake library take for one."""
    text = [line for net in nets for line in net.lines()]
    if refuse:
        text.insert(0, f"refuse {refuse}")
    binary = "".join(line + "\n" for line in text).encode()
    description = _description("B", compiler, "Thu Jan  1 00:00:00 2026\n", chip)
    path.write_bytes(HEADER.pack(MAGIC, HEADER.size, len(description), len(binary)) + description + binary)
    return path


def _description(*texts: str) -> bytes:
    """A FlatBuffers table whose fields are *texts*."""
    count = len(texts)
    offsets = struct.pack(f"<HH{count}H", 4 + 2 * count, 4 + 4 * count, *(4 + 4 * i for i in range(count)))
    offsets += bytes(-len(offsets) % 4)
    table = 4 + len(offsets)
    start = table + 4 + 4 * count
    fields, strings = b"", b""
    for i, text in enumerate(texts):
        fields += struct.pack("<I", start + len(strings) - (table + 4 + 4 * i))
        data = text.encode()
        strings += struct.pack("<I", len(data)) + data + b"\0" * (4 - len(data) % 4)
    return struct.pack("<I", table) + offsets + struct.pack("<i", table - 4) + fields + strings


def worker_with(**variables: object) -> list[str]:
    """The command of a worker that finds *variables* in its environment: FAKE_LOG and the like."""
    return [
        "/usr/bin/env",
        *(f"{name}={value}" for name, value in variables.items()),
        sys.executable,
        "-m",
        "runtime.worker",
    ]
