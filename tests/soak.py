"""The long checks of ``make soak``: the main job from nothing, again, and killed at ten random moments.

Works in a fresh clone with an empty cache, both in a temporary folder; pip's own cache of downloads is left alone.
Writes what it did to the Markdown file given as argument, and exits with 1 where something is not as promised.
"""

from __future__ import annotations

import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script: the packages lie beside this folder

from harness.manifest import now  # noqa: E402 - the line above makes it importable
from reports.schema import RunFile, read  # noqa: E402 - same

FIRST_RUN_LIMIT_S = 15 * 60
SECOND_RUN_LIMIT_S = 2 * 60
KILLS_FROM_NOTHING = 5
KILLS_WHEN_WARM = 5


class Soak:
    """A clone, a cache, and the log of what was done with them."""

    def __init__(self, folder: Path, log: Path) -> None:
        """Clone the repository's last commit into *folder*."""
        self.clone = folder / "clone"
        self.cache = folder / "cache"
        self.log = log
        self.seed = int(time.time())
        self.random = random.Random(self.seed)  # noqa: S311 - reproducible, not secret
        self.failures = 0
        self.results: list[RunFile] = []
        self.lines: list[str] = []
        git = shutil.which("git") or "git"
        subprocess.run([git, "clone", "--quiet", str(ROOT), str(self.clone)], check=True)
        commit = subprocess.run([git, "-C", str(ROOT), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        self.note("# The last soak\n")
        self.note(
            f"`make soak` of commit {commit.stdout.strip()[:12]}, begun {now()}, on {os.cpu_count()} cores, "
            f"{platform.platform()}. A fresh clone, an empty cache; packages come from pip's cache of downloads where "
            f"it has them. Kills at random moments of seed {self.seed}.\n"
        )
        self.note("| step | seconds | result |")
        self.note("|---|---|---|")

    def note(self, line: str) -> None:
        """Add a line to the log, on disk at once."""
        print(line, flush=True)  # noqa: T201 - this is a command
        self.lines.append(line)
        self.log.write_text("\n".join(self.lines) + "\n")

    def start(self) -> subprocess.Popen[bytes]:
        """Begin ``make run`` in a process group of its own."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "MAKE", "MFLAGS"))}
        return subprocess.Popen(
            ["/usr/bin/env", "make", "run"],
            cwd=self.clone,
            env=environment | {"RWKV_TPU_CACHE": str(self.cache)},
            stdout=(self.clone.parent / "make.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def complete(self, step: str, limit_s: float) -> None:
        """Run to the end: it must pass, within the limit, with the same records as every other run."""
        start = time.monotonic()
        status = self.start().wait()
        seconds = time.monotonic() - start
        problems = []
        if status:
            problems.append(f"exit status {status}")
        if seconds > limit_s:
            problems.append(f"over the limit of {limit_s:.0f} s")
        newest = max((self.clone / "runs").glob("*/records.jsonl"), default=None, key=lambda path: path.stat().st_mtime)
        if newest is None:
            problems.append("no records")
        else:
            run = read(newest)
            self.results.append(run)
            if run.interrupted:
                problems.append("the records are of an interrupted run")
            if _verdicts(run) != _verdicts(self.results[0]):
                problems.append("other records than the first run")
        self.failures += bool(problems)
        good = f"passed, {len(self.results[-1].records)} records" if self.results else ""
        self.note(f"| {step} | {seconds:.0f} | {'; '.join(problems) or good} |")

    def kill(self, step: str, within_s: float) -> None:
        """Begin, and kill everything at a random moment."""
        wait = self.random.uniform(0.5, within_s)
        process = self.start()
        try:
            process.wait(timeout=wait)
            self.note(f"| {step} | {wait:.0f} | had ended before the kill |")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.note(f"| {step} | {wait:.0f} | killed |")


def _verdicts(run: RunFile) -> list[tuple[object, ...]]:
    """All that must be equal from run to run: everything but times."""
    return [(r.case, r.suite, r.check, r.outcome, r.metrics, r.predicted) for r in run.records]


def main(log: Path) -> int:
    """Do it all; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="rwkv-tpu-soak-") as name:
        soak = Soak(Path(name), log)
        soak.complete("first run, from nothing", FIRST_RUN_LIMIT_S)
        soak.complete("second run", SECOND_RUN_LIMIT_S)
        shutil.rmtree(soak.clone / ".venv")
        shutil.rmtree(soak.cache)
        for i in range(KILLS_FROM_NOTHING):
            soak.kill(f"kill {i + 1}, on the way from nothing", within_s=150)
        soak.complete("run after these kills", FIRST_RUN_LIMIT_S)
        for i in range(KILLS_WHEN_WARM):
            soak.kill(f"kill {KILLS_FROM_NOTHING + i + 1}, everything in the cache", within_s=60)
            soak.complete("run after this kill", FIRST_RUN_LIMIT_S)
        soak.note(f"\n{'Everything as promised.' if not soak.failures else f'{soak.failures} steps failed.'}")
        return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
