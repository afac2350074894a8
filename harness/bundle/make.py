"""A bundle: the bmodels of a case, all that is needed to use them, and what is known of them."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from compile.host_embedding import host_table
from compile.stages import hash_file
from harness.bundle.contract import contract_of
from harness.bundle.verdicts import BundleError, Subject, newest_verdicts, read_verdicts
from harness.limits import limits_for, load_limits
from harness.manifest import git_state, now
from harness.metrics import log_softmax
from harness.oracle import oracle_for, that_matter
from harness.prompts import prompt
from runtime.description import describe
from runtime.nets import assemble, check_agreement, from_floats
from tokenizer.codec import Codec
from tokenizer.world import find_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from compile.compiler import Bmodel
    from compile.toolchain import Toolchain
    from harness.bundle.verdicts import Verdicts
    from harness.cases import Case
    from harness.checkpoints import Model
    from harness.limits import Limits
    from harness.targets.base import Target
    from runtime.nets import Net

_ROOT = Path(__file__).parent.parent.parent
RUNTIME = (
    "__init__",
    "age",
    "binding",
    "bmodel",
    "cmodel",
    "device",
    "faults",
    "framing",
    "libraries",
    "waiting",
    "window",
    "worker",
)
"""The modules of the runtime's worker: Python 3.8 and no package are enough for them."""

_PROMPTS = 2
_GREEDY = 12
"""Tokens that the self-test decodes after each prompt, at most."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a bundle is made of.

    Attributes:
        cases: a decode graph, and any number of prefill graphs that go with it; all of one precision and variant.
        run: whose verdicts go with it; None for the latest in *runs* that judged the same bmodels.
        runs: a folder of runs; one that is not there has none.
    """

    cases: tuple[Case, ...]
    model: Model
    toolchain: Toolchain
    run: Path | None = None
    runs: Path = Path("runs")

    @property
    def subject(self) -> Subject:
        """What verdicts must be of."""
        return Subject(
            checkpoint=self.model.checkpoint, toolchain=self.toolchain, cases=tuple(case.id for case in self.cases)
        )


def with_decode(case: Case) -> tuple[Case, ...]:
    """A case, and the decode graph that takes what its chunks leave over."""
    return tuple(dict.fromkeys([case.decode, case]))


def make_bundle(
    request: Request, out: Path, compiled: Callable[[Case], Bmodel], *, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Write a bundle into the folder *out*, which must not be there.

    Args:
        request: what it is made of.
        out: where to.
        compiled: compiles a case, or finds it compiled.
        say: receives a line that says which verdicts go with it.

    Raises:
        BundleError: *out* is there, a case is compiled in parts, or the run that was named has no verdict of these
            bmodels.
        CompileError: a case does not compile.
    """
    if out.exists():
        raise BundleError(f"{out} should not be there yet: a bundle is written once, and then checked by its hashes")
    if parts := [case.id for case in request.cases if case.blocks]:
        raise BundleError(
            f"{parts[-1]} is compiled in parts, but should be a whole graph, whose inputs and outputs a map can tell: "
            "leave out +blocks"
        )
    verdicts = None if request.run is None else read_verdicts(request.run, request.subject)
    bmodels = {case: compiled(case) for case in request.cases}
    hashes = {case.id: bmodel.result.bmodel_sha256 for case, bmodel in bmodels.items()}
    if verdicts is not None:
        verdicts.refuse_others(hashes)
    else:
        verdicts = newest_verdicts(request.runs, request.subject, hashes)
    say(f"verdicts: {_judged(request, verdicts)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        _fill(request, work, bmodels, verdicts)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _fill(request: Request, work: Path, bmodels: Mapping[Case, Bmodel], verdicts: Verdicts | None) -> None:
    model, toolchain, last = request.model, request.toolchain, request.cases[-1]
    names = {case: f"{case.graph.name}.bmodel" for case in request.cases}
    for case, bmodel in bmodels.items():
        shutil.copy(bmodel.path, work / names[case])
    limits = limits_for(load_limits()[0], last)
    (work / "runtime").mkdir()
    for name in RUNTIME:
        shutil.copy(_ROOT / "runtime" / f"{name}.py", work / "runtime" / f"{name}.py")
    shutil.copy(Path(__file__).with_name("selftest.py"), work / "selftest.py")
    if model.codec is Codec.WORLD:
        shutil.copy(find_vocabulary(), work / find_vocabulary().name)
    described = [(net, names[case]) for case in request.cases for net in describe(work / names[case])]
    nets = assemble(described)
    check_agreement(nets)
    tables = _write_tables(model, work, nets)
    (work / "io.toml").write_text(contract_of(last, model, described))
    oracle = oracle_for(model.checkpoint, last.quantization, that_matter(last.quantization, last.options))
    chunk = max(net.tokens for net in nets)
    prompts = [
        _prompt(oracle, prompt(model, 2 * chunk + 3, seed), limits, work / f"logits-{seed}.f32")
        for seed in range(_PROMPTS)
    ]
    _readme(request, work, verdicts, sorted(set(tables.values())))
    hashes = {str(path.relative_to(work)): hash_file(path) for path in sorted(work.rglob("*")) if path.is_file()}
    bundle = {
        "schema": 1,
        "case": last.id,
        "made": now(),
        "codec": model.codec.value,
        "chunk_lengths": sorted(net.tokens for net in nets),
        "checkpoint": {"name": model.checkpoint.name, "sha256": model.checkpoint.sha256},
        "toolchain": {
            "version": toolchain.version,
            "commit": toolchain.compiler_commit,
            "wheel_sha256": toolchain.wheel_sha256,
            "identity": toolchain.identity,
        },
        "harness": {"version": version("rwkv-tpu-harness"), "python": platform.python_version(), **git_state()},
        "predicted": {case.id: {"predicted_ms": bmodels[case].result.profile.predicted_ms} for case in request.cases},
        "contract": {
            "bmodels": [names[case] for case in request.cases],
            "nets": [
                {
                    "name": net.name,
                    "tokens": net.tokens,
                    "logits_dtype": int(net.logits_dtype),
                    "embedding": tables.get(net.name),
                    "edges": dict(net.edges),
                    "parts": [[part.net, list(part.inputs), list(part.outputs)] for part in net.parts],
                }
                for net in nets
            ],
            "state_bytes": [state.size_bytes for state in nets[0].states],
            "vocabulary": nets[0].vocabulary,
            "kl_worst_nats": limits.kl_worst_nats,
        },
        "prompts": prompts,
        "verdicts": verdicts.told() if verdicts else [],
        "sha256": hashes,
    }
    (work / "bundle.json").write_bytes(msgspec.json.format(msgspec.json.encode(bundle), indent=2))


def _write_tables(model: Model, work: Path, nets: Sequence[Net]) -> dict[str, str]:
    """Write the embedding for nets that take its rows, which lie in the file as they are fed; its name by the net's."""
    names = {}
    for net in nets:
        if net.rows is not None:
            names[net.name] = f"embedding.{net.rows.dtype.name.lower()}"
            if not (work / names[net.name]).exists():
                (work / names[net.name]).write_bytes(from_floats(host_table(model.arrays), net.rows.dtype))
    return names


def _prompt(oracle: Target, tokens: list[int], limits: Limits, file: Path) -> dict[str, Any]:
    """A prompt with the reference's logits after it, and the tokens that greedy decoding gives from there.

    They end before the first near-tie: which of two tokens comes first then, the precision may decide.
    """
    logits = oracle.run(tokens).logits[-1]
    file.write_bytes(np.asarray(logits, "<f4").tobytes())
    greedy: list[int] = []
    while len(greedy) < _GREEDY:
        second, first = np.sort(log_softmax(logits[None])[0])[-2:]
        if first - second < limits.near_tie_nats:
            break
        greedy.append(int(logits.argmax()))
        logits = oracle.run([*tokens, *greedy]).logits[-1]
    return {"tokens": tokens, "logits": file.name, "greedy": greedy}


def _judged(request: Request, verdicts: Verdicts | None) -> str:
    if verdicts is not None:
        return verdicts.words
    return (
        f"none: no finished run in {request.runs} judged these bmodels; pytest suites/ with a grid that has "
        f"{' and '.join(case.id for case in request.cases)} does, then make the bundle again"
    )


def _readme(request: Request, work: Path, verdicts: Verdicts | None, tables: Sequence[str]) -> None:
    last = request.cases[-1]
    codec = f"`{request.model.codec.value}`" + (
        f", {find_vocabulary().name}" if request.model.codec is Codec.WORLD else ""
    )
    work.joinpath("README.md").write_text(
        f"# {last.id} of {request.model.checkpoint.name}\n\n"
        f"- bmodels: {', '.join(f'`{case.graph.name}.bmodel`' for case in request.cases)}, TPU-MLIR "
        f"{request.toolchain.compiler_commit}\n"
        f"- token ids: {codec}\n"
        "- inputs, outputs, state, chunk lengths: `io.toml`; everything else: `bundle.json`\n"
        + "".join(
            f"- rows of the embedding, one for each token id, as the nets take them: `{name}`\n" for name in tables
        )
        + f"- verdicts: {_judged(request, verdicts)}\n\n"
        "A prompt goes in whole chunks through the longest net that fits, the rest token by token through decode; "
        "nothing is ever padded. The state begins as zeros, and each call's states go into the next.\n\n"
        "Does it still compute what it should, here? Python 3.8 or newer, no package:\n\n"
        "```\npython3 selftest.py\npython3 selftest.py --simulator --libraries tpu_mlir/lib\n```\n\n"
        "Through all suites: `pytest suites/ --bmodel "
        f"{','.join(f'{case.graph.name}.bmodel' for case in request.cases)} --io io.toml --checkpoint FILE`\n"
    )
