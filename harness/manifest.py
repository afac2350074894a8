"""The first line of a run: everything needed to tell where its records come from."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import distributions, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from reports import schema
from tokenizer.world import find_vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compile.toolchain import Toolchain
    from harness.cases import Grid
    from harness.checkpoints import Model

_ROOT = Path(__file__).parent.parent


def manifest(
    *,
    run_id: str,
    target: str,
    toolchain: Toolchain,
    model: Model,
    grid: Grid,
    port: Mapping[str, str],
    limits_sha256: str,
    known_sha256: str,
    options: Mapping[str, str],
    health: tuple[schema.Reading, ...] = (),
    checks: int = 0,
) -> schema.Run:
    """Describe a run that is about to start; *options* are those of the suites, by their names.

    *port* tells of somebody else's files, and is empty where our own graphs are judged. *known_sha256* is that of the
    list of expected failures, empty where there is none; *checks* is how many will be made.
    """
    shape = model.checkpoint.shape
    return schema.Run(
        schema=schema.VERSION,
        id=run_id,
        started=now(),
        command=tuple(sys.argv),
        target=target,
        harness={"version": version("rwkv-tpu-harness"), **git_state()},
        toolchain={
            "version": toolchain.version,
            "commit": toolchain.compiler_commit,
            "wheel_sha256": toolchain.wheel_sha256,
            "identity": toolchain.identity,
        },
        checkpoint={
            "name": model.checkpoint.name,
            "container": model.checkpoint.container.value,
            "sha256": model.checkpoint.sha256,
            "codec": model.codec.value,
            "n_layer": shape.n_layer,
            "n_embd": shape.n_embd,
            "head_size": shape.head_size,
            "n_ffn": shape.n_ffn,
            "n_vocab": shape.n_vocab,
        },
        grid={"name": grid.name, "sha256": grid.sha256},
        port=dict(port),
        limits_sha256=limits_sha256,
        options=dict(options),
        data={
            (vocabulary := find_vocabulary()).name: hashlib.sha256(vocabulary.read_bytes()).hexdigest(),
            **({"known": known_sha256} if known_sha256 else {}),
        },
        machine={
            "system": platform.platform(),
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": psutil.virtual_memory().total,
            "python": platform.python_version(),
        },
        packages={found.name: found.version for found in sorted(distributions(), key=lambda d: d.name.lower())},
        health=health,
        checks=checks,
    )


def now() -> str:
    """The time in ISO 8601 with the offset from UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def git_state() -> dict[str, str]:
    """Commit of the working tree, and whether it was changed since; empty outside a repository."""
    git = shutil.which("git")
    if git is None or not (_ROOT / ".git").exists():
        return {}

    def ask(*arguments: str) -> str:
        command = [git, "-C", str(_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return {"commit": ask("rev-parse", "HEAD"), "changed": str(bool(ask("status", "--porcelain"))).lower()}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
