"""Everything that has never met hardware, in rising order of risk; stops at the first surprise.

Each step leaves a line in ``steps.jsonl`` and its log in ``log.txt``; the folder is packed to be sent back. Names of
users and machines are left out of all of it.
"""

from __future__ import annotations

import getpass
import json
import math
import platform
import re
import socket
import statistics
import tarfile
import time
import traceback
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compile.spec import GraphKind, GraphSpec
from harness.device.board import locate_board
from harness.device.canary import QUANTIZATION, ask, compile_for, make_canary
from harness.device.health import read_health
from harness.device.lock import BoardLock
from harness.device.place import place_of
from harness.device.probe import Probed, Step, probe
from harness.device.sensors import bm_smi, tool_output
from harness.limits import load_limits
from harness.manifest import now
from harness.metrics import logits_distance, state_nmse
from harness.prompts import prompt
from harness.targets.bmodel import BmodelTarget, get_state
from harness.targets.torch import ReferenceTarget
from reference.fast import Fast
from runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compile.toolchain import Toolchain
    from harness.checkpoints import Model
    from harness.device.board import Board
    from harness.targets.base import Output

BM1684X = "0x1686"
CHUNK = 16
_GRAPHS = ((GraphKind.DECODE, 1), (GraphKind.PREFILL, CHUNK))
MANY_STEPS = 100
_WARM_UP, _SAMPLES, _SAMPLES_SIMULATED = 20, 200, 3


class SurpriseError(Exception):
    """Something is not as it should be; says what was expected and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it ended.

    Attributes:
        folder: the steps, the log and the environment.
        archive: the same, packed.
        failed: name of the step with the surprise; None where there was none.
    """

    folder: Path
    archive: Path
    failed: str | None


@dataclass(kw_only=True)
class Contact:
    """What the steps find out, one building on the other."""

    number: int
    libsophon: Path | None
    toolchain: Toolchain
    model: Model
    say: Callable[[str], None]
    log: list[str] = field(default_factory=list)
    found: Board | None = None

    @property
    def board(self) -> Board:
        """The board, once the first step has found it."""
        if self.found is None:
            self.found = locate_board(self.number, self.libsophon)
        return self.found

    def reference(self, tokens: Sequence[int]) -> Output:
        """What the reference says."""
        import torch  # noqa: PLC0415 - takes seconds, and the first steps do without

        return ReferenceTarget(Fast(self.model.checkpoint, torch.float64)).run(tokens)

    def probe(self, upto: Step) -> Probed:
        """Go as far as *upto* in a process of its own, and keep what the libraries printed."""
        probed = probe(self.board.libraries.folder, self.number, upto)
        self.log.append(probed.log)
        return probed

    def bmodel(self, kind: GraphKind, T: int = 1) -> Path:
        """A graph of the model that ships."""
        spec = GraphSpec(kind=kind, T=T)
        return compile_for(self.toolchain, spec, self.model, say=self.say).path


Found = dict[str, Any]


def run_first_contact(contact: Contact, folder: Path) -> Outcome:
    """Take the steps, one after the other, and pack what they left.

    Raises:
        BoardBusyError: somebody else uses the board.
        FileExistsError: *folder* is there already.
    """
    folder.mkdir(parents=True)
    failed: str | None = STEPS[0][0]
    try:
        failed = _walk(contact, folder)
    finally:  # also on Ctrl-C: what was found until then is worth sending
        _write(folder / "log.txt", "\n".join(contact.log))
        archive = _pack(folder)
    return Outcome(folder=folder, archive=archive, failed=failed)


def _walk(contact: Contact, folder: Path) -> str | None:
    lock: BoardLock | None = None
    try:
        for number, (name, risk, step) in enumerate(STEPS, 1):
            contact.say(f"{number:2d}/{len(STEPS)} {name}: {risk} …")
            contact.log.append(f"== {number} {name}")
            start = time.monotonic()
            line: Found = {"step": name, "started": now()}
            try:
                line |= {"outcome": "as expected", "found": step(contact)}
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the surprise that this is looking for
                line |= {"outcome": "surprise", "error": f"{type(error).__name__}: {error}"}
                contact.log.append(traceback.format_exc())
            line |= {"seconds": round(time.monotonic() - start, 3), "target": _label(contact)}
            with (folder / "steps.jsonl").open("a") as file:
                file.write(redact(json.dumps(line, default=str)) + "\n")
            if "error" in line:
                contact.say(f"      surprise: {line['error']}")
                return name
            contact.say(f"      {_short(line['found'])}")
            if lock is None:  # the first step found the board, and nothing has touched it yet
                lock = BoardLock(contact.board.name).acquire()
                _write(folder / "environment.json", json.dumps(_environment(contact), indent=2))
    finally:
        if lock is not None:
            lock.release()
    return None


def _find(contact: Contact) -> Found:
    board = contact.board
    folder = board.libraries.folder
    return {
        "kind": board.kind.value,
        "label": board.label,
        "libraries": sorted(path.name for path in folder.glob("lib*.so*")),
        "folder": str(folder),
    }


def _compile(contact: Contact) -> Found:
    return {kind.value: contact.bmodel(kind, T).stat().st_size for kind, T in _GRAPHS}


def _load(contact: Contact) -> Found:
    return {"libraries": contact.probe(Step.LOAD).found[Step.LOAD.value]}


def _versions(contact: Contact) -> Found:
    found = contact.probe(Step.COUNT).found
    missing = found[Step.VERSIONS.value]["missing"]
    _expect(not missing, f"functions that are called are missing: {', '.join(missing)}")
    count = found[Step.COUNT.value]
    _expect(contact.number < count, f"expected a device {contact.number}, but the library counts {count}, from 0 on")
    return {"devices": count, **found[Step.VERSIONS.value]}


def _open(contact: Contact) -> Found:
    return {"opened": contact.probe(Step.OPEN).found[Step.OPEN.value]}


def _chip(contact: Contact) -> Found:
    found = contact.probe(Step.CHIP).found[Step.CHIP.value]
    chip = found["chip_id"]
    _expect(chip == BM1684X, f"expected the chip id of a BM1684X, {BM1684X}, found {chip}")
    return {**found, **_health(contact)}


def _health(contact: Contact) -> Found:
    readings = read_health(contact.board)
    return {
        "health": {r.name: f"{r.value} {r.unit}".strip() if r.value is not None else None for r in readings},
        "unavailable": {r.name: r.why_unavailable for r in readings if r.value is None},
    }


def _memory(contact: Contact) -> Found:
    found: Found = contact.probe(Step.MEMORY).found[Step.MEMORY.value]
    wrong = found["wrong"]
    _expect(not wrong, f"expected device memory to hold what was written; pieces of {wrong} bytes came back otherwise")
    return found


def _load_bmodel(contact: Contact) -> Found:
    decode = contact.bmodel(GraphKind.DECODE)
    with place_of(contact.board).open([decode]) as engine:
        net = engine.nets[0]
        return {
            "net": net.name,
            "states": len(net.states),
            "addr_mode": net.addr_mode,
            "runtime_flags": engine.versions.runtime_flags,
            "driver": engine.versions.driver,
            "remarks": engine.remarks,
            "libraries": {file.path.rpartition("/")[2]: file.sha256 for file in engine.versions.libraries},
        }


def _one_launch(contact: Contact) -> Found:
    with place_of(contact.board).open([contact.bmodel(GraphKind.DECODE)]) as engine, Session(engine) as session:
        logits = session.run(engine.nets[0].name, [1])
    _expect(bool(np.isfinite(logits).all()), "expected finite logits, found NaN or Inf")
    return {"logits": len(logits), "largest": float(logits.max()), "smallest": float(logits.min())}


def _compare(contact: Contact) -> Found:
    canary = make_canary(contact.toolchain)
    with place_of(contact.board).open([canary.bmodel.path]) as engine:
        first, second = ask(canary, engine), ask(canary, engine)
    _expect(not first.breaches, f"expected the reference's logits and state: {'; '.join(first.breaches)}")
    same = first.sha256 == second.sha256
    _expect(same, "expected the same bits of two equal runs, found two answers")
    return first.distances | {"sha256": first.sha256}


def _prefill(contact: Contact) -> Found:
    bmodels = [contact.bmodel(GraphKind.DECODE), contact.bmodel(GraphKind.PREFILL, CHUNK)]
    tokens = prompt(contact.model, 2 * CHUNK, seed=9)
    with place_of(contact.board).open(bmodels) as engine:
        net = next(net for net in engine.nets if net.tokens == CHUNK)
        got = BmodelTarget(engine, net.name).run(tokens)
    want = contact.reference(tokens)
    return _close(want.logits[list(got.positions)], got.logits, want.state, got.state)


def _sessions(contact: Contact) -> Found:
    texts = [prompt(contact.model, 8, seed=seed) for seed in (10, 11)]
    bmodel = contact.bmodel(GraphKind.DECODE)
    with place_of(contact.board).open([bmodel]) as engine, Session(engine) as one, Session(engine) as other:
        for position in range(8):
            rows = [one.feed([texts[0][position]]), other.feed([texts[1][position]])]
        states = [get_state(one), get_state(other)]
    found: Found = {}
    for i, text in enumerate(texts):
        want = contact.reference(text)
        found[f"session {i}"] = _close(want.logits[-1:], rows[i][None], want.state, states[i])
    return found


def _many_steps(contact: Contact) -> Found:
    tokens = prompt(contact.model, MANY_STEPS, seed=12)
    bmodel = contact.bmodel(GraphKind.DECODE)
    with place_of(contact.board).open([bmodel]) as engine:
        got = BmodelTarget(engine, engine.nets[0].name).run(tokens)
    want = contact.reference(tokens)
    return _close(want.logits, got.logits, want.state, got.state)


def _throughput(contact: Contact) -> Found:
    simulated = contact.board.simulated
    count = _SAMPLES_SIMULATED if simulated else _WARM_UP + _SAMPLES
    tokens = prompt(contact.model, count, seed=13)
    seconds = []
    with place_of(contact.board).open([contact.bmodel(GraphKind.DECODE)]) as engine, Session(engine) as session:
        for token in tokens:
            session.feed([token])
            seconds.append(session.last_call_s)
    if simulated:
        return {"steps": count, "note": "the simulator's times are no performance figures, and are left out"}
    kept = [1000 * second for second in seconds[_WARM_UP:]]
    _expect(all(math.isfinite(ms) and ms > 0 for ms in kept), "expected times above zero")
    return {"steps": len(kept), "median_ms": statistics.median(kept), "worst_ms": max(kept), "samples_ms": kept}


STEPS: tuple[tuple[str, str, Callable[[Contact], Found]], ...] = (
    ("find", "looks at files", _find),
    ("compile", "compiles two small graphs; no board is touched", _compile),
    ("load", "loads the libraries in a process of their own", _load),
    ("versions", "asks them for versions and the number of devices", _versions),
    ("open", "opens the device and closes it", _open),
    ("chip", "reads the chip's id and the board's health", _chip),
    ("memory", "takes, writes, reads back and frees device memory", _memory),
    ("load-bmodel", "loads a bmodel of a few megabytes", _load_bmodel),
    ("launch", "runs one step of decode", _one_launch),
    ("compare", "runs 16 steps twice, and compares with the reference", _compare),
    ("prefill", "runs prefill, two chunks", _prefill),
    ("sessions", "two recurrent states in turn", _sessions),
    ("steps", f"{MANY_STEPS} steps in a row", _many_steps),
    ("throughput", "a sample of times", _throughput),
    ("health", "reads the board's health again", _health),
)
"""Name, what it does to the board, and how."""


def redact(text: str) -> str:
    """*text* without the names of this machine and its user."""
    text = text.replace(str(Path.home()), "~") if Path.home() != Path("/") else text
    text = re.sub(r"/home/[^/\s\"']+", "/home/<user>", text)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "root"
    for name, instead in ((socket.gethostname(), "<host>"), (user, "<user>")):
        if len(name) > 2 and name not in {"root", "localhost"}:
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", instead, text)
    return text


def _close(
    want: np.ndarray, got: np.ndarray, want_state: Sequence[np.ndarray], got_state: Sequence[np.ndarray]
) -> dict[str, float]:
    """The distances of logits ``[T, V]`` and state from the reference's.

    Raises:
        SurpriseError: beyond the caps of ``suites/limits.toml``.
    """
    limits = load_limits()[0][QUANTIZATION]
    distance = logits_distance(want, got, near_tie_nats=limits.near_tie_nats)
    errors = state_nmse(want_state, got_state)
    breaches = [*limits.breaches(distance), *limits.state_breaches(errors)]
    _expect(not breaches, f"expected the reference's logits and state: {'; '.join(breaches)}")
    return {"kl_worst_nats": distance.kl_worst_nats, "state_nmse": max(errors.values())}


def _expect(holds: bool, otherwise: str) -> None:  # noqa: FBT001 - reads like an assertion
    if not holds:
        raise SurpriseError(otherwise)


def _label(contact: Contact) -> str:
    return contact.found.label if contact.found else f"board {contact.number}, not found"


def _short(found: Found) -> str:
    text = json.dumps(found, default=str)
    return text if len(text) <= 200 else text[:197] + "..."


def _environment(contact: Contact) -> Found:
    root = contact.board.root
    tools = (["bm_version"], bm_smi(contact.number))
    return {
        "harness": version("rwkv-tpu-harness"),
        "target": contact.board.label,
        "system": platform.platform(),
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "toolchain": contact.toolchain.compiler_commit,
        "checkpoint": contact.model.checkpoint.name,
        "tools": {tool[0]: tool_output(tool, root) for tool in tools} if not contact.board.simulated else {},
    }


def _write(path: Path, text: str) -> None:
    path.write_text(redact(text))


def _pack(folder: Path) -> Path:
    archive = folder.with_name(folder.name + ".tar.gz")

    def nobody(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name, filter=nobody)
    return archive
