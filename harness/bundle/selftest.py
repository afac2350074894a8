"""Does this bundle still compute what it did when it was made? Runs on Python 3.8 or newer, without any package.

    python3 selftest.py                                on board 0, libraries in /opt/sophon/libsophon-current/lib
    python3 selftest.py --device 1 --libraries DIR     on another board, or with libraries elsewhere
    python3 selftest.py --simulator --libraries DIR    on the chip's simulator: the folder tpu_mlir/lib of the compiler

Exit status: 0 passed; 1 the numbers are wrong; 2 the files of the bundle are not what they were; 3 it could not be run,
which says nothing about the numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, cast

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from runtime.framing import Message, encode, receive  # noqa: E402 - lies beside this file

PASSED, WRONG, DAMAGED, NOT_RUN = 0, 1, 2, 3
LIBRARIES = "/opt/sophon/libsophon-current/lib"
_F32, _F16, _BF16 = 0, 1, 8  # bm_data_type_t


class NotRunError(Exception):
    """The test could not be made."""


class Worker:
    """The process that holds the vendor's libraries."""

    def __init__(self, log: Path) -> None:
        command = [sys.executable, "-B", "-m", "runtime.worker"]
        self._log = log
        with log.open("wb") as words:
            self._process = subprocess.Popen(
                command, cwd=str(HERE), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words
            )
        self._requests = cast("IO[bytes]", self._process.stdin)
        self._replies = cast("IO[bytes]", self._process.stdout)

    def ask(self, payloads: tuple[bytes, ...] = (), **fields: object) -> Message:
        """Send a request and wait for its reply."""
        try:
            self._requests.write(encode(fields, payloads))
            self._requests.flush()
            while True:
                reply = receive(self._read)
                if "alive" not in reply.fields:
                    break
        except (EOFError, OSError):
            self._process.wait()
            words = self._log.read_text(errors="replace").splitlines()[-5:]
            ending = f"the worker ended with {self._process.returncode} while asked to {fields['do']}"
            raise NotRunError("\n".join([ending, *words])) from None
        if "fault" in reply.fields:
            raise NotRunError(f"{reply.fields['fault']}: {reply.fields['message']}")
        return reply

    def _read(self, count: int) -> bytes:
        data = self._replies.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def close(self) -> None:
        """End it."""
        self._requests.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def floats(data: bytes, dtype: int) -> list[float]:
    """Numbers as they lie on the device."""
    if dtype == _F32:
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    if dtype == _F16:
        return list(struct.unpack(f"<{len(data) // 2}e", data))
    halves = struct.unpack(f"<{len(data) // 2}H", data)
    return list(struct.unpack(f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(h << 16 for h in halves))))


def log_softmax(logits: list[float]) -> list[float]:
    """Natural log-probabilities."""
    top = max(logits)
    total = top + math.log(math.fsum(math.exp(x - top) for x in logits))
    return [x - total for x in logits]


def kl(expected: list[float], got: list[float]) -> float:
    """Divergence of *got* from *expected*, in nats; NaN where a number is none."""
    if not all(map(math.isfinite, got)):
        return math.nan
    p, q = log_softmax(expected), log_softmax(got)
    return max(math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q)), 0.0)  # noqa: B905 - Python 3.8


def check_files(hashes: dict[str, str]) -> list[str]:
    """What is not as it was when the bundle was made."""
    wrong = []
    for name, expected in sorted(hashes.items()):
        path = HERE / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
            continue
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            wrong.append(f"{name}: SHA-256 should be {expected}, is {found}")
    return wrong


def run(worker: Worker, contract: dict[str, Any], prompts: list[dict[str, Any]]) -> list[str]:
    """What each prompt shows to be wrong, in words."""
    load(worker, contract)
    wrong = []
    for number, prompt in enumerate(prompts):
        wrong += [f"prompt {number}: {words}" for words in judge(worker, contract, prompt)]
    return wrong


def load(worker: Worker, contract: dict[str, Any]) -> None:
    """Load the bmodels and reserve memory for what their nets take and give."""
    names = set()
    for bmodel in contract["bmodels"]:
        worker.ask(do="check", bmodel=str(HERE / bmodel))
        names |= {net["name"] for net in worker.ask(do="load", bmodel=str(HERE / bmodel)).fields["nets"]}
    for net in contract["nets"]:
        missing = [part[0] for part in net["parts"] if part[0] not in names]
        if missing:
            raise NotRunError(f"the bmodels have no net {missing[0]}; they have {sorted(names)}")
        worker.ask(do="prepare", net=net["name"], edges=net["edges"], parts=net["parts"])


def judge(worker: Worker, contract: dict[str, Any], prompt: dict[str, Any]) -> list[str]:
    """The logits after one prompt, and the tokens that greedy decoding gives from there."""
    wrong = []
    session = worker.ask(do="start", sizes_bytes=contract["state_bytes"]).fields["session"]
    logits = feed(worker, contract, session, prompt["tokens"])
    distance = kl(floats((HERE / prompt["logits"]).read_bytes(), _F32), logits)
    cap = contract["kl_worst_nats"]
    if not distance <= cap:
        wrong.append(f"kl_worst_nats={distance:.2e} after {len(prompt['tokens'])} tokens, but should be <= {cap:.1e}")
    got: list[int] = []
    for expected in prompt["greedy"]:
        if got:
            logits = feed(worker, contract, session, got[-1:])
        got.append(max(range(len(logits)), key=logits.__getitem__))
        if got[-1] != expected:
            wrong.append(f"greedy tokens {got}, but should be {prompt['greedy'][: len(got)]}")
            break
    worker.ask(do="end", session=session)
    return wrong


def feed(worker: Worker, contract: dict[str, Any], session: int, tokens: list[int]) -> list[float]:
    """Logits after the last of *tokens*: whole chunks, the longest nets first, nothing is ever padded."""
    logits: list[float] = []
    start = 0
    for net in sorted(contract["nets"], key=lambda net: -net["tokens"]):
        while len(tokens) - start >= net["tokens"]:
            chunk = tokens[start : start + net["tokens"]]
            data = fed(net, chunk)
            reply = worker.ask((data,), do="run", session=session, net=net["name"])
            logits = floats(bytes(reply.payloads[0]), net["logits_dtype"])[-contract["vocabulary"] :]
            start += len(chunk)
    return logits


def fed(net: dict[str, Any], chunk: list[int]) -> bytes:
    """What a net takes for its tokens: their ids, or their rows of a file of the bundle, which are as they are fed."""
    if net.get("embedding") is None:
        return struct.pack(f"<{len(chunk)}i", *chunk)
    size = net["edges"]["tokens"] // net["tokens"]
    rows = []
    with (HERE / net["embedding"]).open("rb") as table:
        for token in chunk:
            table.seek(token * size)
            rows.append(table.read(size))
    return b"".join(rows)


def say(text: str) -> None:
    """One line, or several, for a person."""
    sys.stdout.write(text + "\n")


def main() -> int:
    """Run, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=int, default=0, help="number of the board (default: 0)")
    parser.add_argument("--libraries", default=LIBRARIES, help="folder of libbmlib and libbmrt (default: %(default)s)")
    parser.add_argument("--simulator", action="store_true", help="the libraries are the simulator's")
    given = parser.parse_args()
    bundle = json.loads((HERE / "bundle.json").read_text())
    damaged = check_files(bundle["sha256"])
    if damaged:
        say("DAMAGED: this bundle is not what was made:")
        say("\n".join("  " + line for line in damaged))
        return DAMAGED
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"rwkv-selftest-{os.getpid()}.log"  # noqa: S108 - a log
    worker = Worker(log)
    try:
        worker.ask(do="open", folder=given.libraries, device=given.device, simulated=given.simulator, scratch=None)
        wrong = run(worker, bundle["contract"], bundle["prompts"])
    except NotRunError as error:
        say(f"NOT RUN: {error}")
        return NOT_RUN
    finally:
        worker.close()
        if log.exists():
            log.unlink()
    if wrong:
        say("FAILED: {}".format(bundle["case"]))
        say("\n".join("  " + line for line in wrong))
        return WRONG
    where = "the simulator" if given.simulator else f"device {given.device}"
    say("PASSED: {}, {} prompts, on {}".format(bundle["case"], len(bundle["prompts"]), where))
    return PASSED


if __name__ == "__main__":
    sys.exit(main())
