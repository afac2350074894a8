"""Faults of what measures, which no run of the suites can see: the project's own tests are what catches them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from compile.compiler import Job
from compile.graphs.model import Rwkv7
from compile.identity import hash_arrays
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.toolchain import Toolchain
from harness.lambada.results import Result
from runtime.session import Session
from tests import test_compiler, test_lambada_documents, test_lambada_results, test_throughput, test_tokenizer
from tests.a_receipt import a_receipt
from tests.detection.faults import _splitting
from tests.detection.judge import words
from tokenizer.world import WorldTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from harness.targets.base import Score


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFault:
    """One fault.

    Attributes:
        name: short, with hyphens.
        wrong: what is wrong, in a sentence.
        patches: puts the fault in, while it is entered.
        meant: the test that should catch it, and how it is called.
    """

    name: str
    wrong: str
    patches: Callable[[], AbstractContextManager[object]]
    meant: tuple[Callable[..., None], Callable[[], dict[str, Any]]]

    @property
    def test(self) -> str:
        """The test's file and name."""
        return f"{self.meant[0].__module__.replace('.', '/')}.py::{self.meant[0].__name__}"


def judge(fault: ToolFault | None, test: Callable[..., None], given: Callable[[], dict[str, Any]]) -> str:
    """Run *test*, with each of its parameters, and say how it fails; empty where it passes."""
    arguments = given()
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    rows = [dict(zip(marks[0].args[0], row, strict=True)) for row in marks[0].args[1]] if marks else [{}]
    try:
        for row in rows:
            if fault is None:
                test(**arguments, **row)
            else:
                with fault.patches():
                    test(**arguments, **row)
    except AssertionError as error:
        return words(error)
    return ""


def _without_start() -> AbstractContextManager[object]:
    right = test_lambada_documents.to_text

    def to_text(*arguments: Any) -> Any:
        (_, *prompt), continuation = right(*arguments)
        return prompt, continuation

    return patch.object(test_lambada_documents, "to_text", to_text)


def _first_token_only() -> AbstractContextManager[object]:
    right = Result.of.__func__

    def of(cls: type[Result], name: str, score: Score) -> Result:
        return right(cls, name, replace(score, is_top=score.is_top[:1]))

    return patch.object(Result, "of", classmethod(of))


def _sampling() -> AbstractContextManager[object]:
    """A call of a net takes the time of sampling from its logits as well."""
    right = Session.run

    def run(self: Session, *arguments: Any) -> Any:
        logits = right(self, *arguments)
        self._engine.clock.now += 0.125
        return logits

    return patch.object(Session, "run", run)


def _key_without_weights() -> AbstractContextManager[object]:
    right = Job.__dict__["key"].func
    return patch.object(Job, "key", property(lambda self: right(replace(self, arrays_sha256=""))))


def _job() -> dict[str, Any]:
    arrays = test_compiler.ARRAYS
    job = Job(
        arrays=arrays,
        arrays_sha256=hash_arrays(arrays),
        variant=Rwkv7,
        spec=GraphSpec(kind=GraphKind.DECODE),
        quantization=Quantization.F16,
        toolchain=Toolchain(Path("a"), a_receipt()),
    )
    return {"fake": job}


def _tokenizers() -> dict[str, Any]:
    world = WorldTokenizer.load()
    ids = {entry: [token] for token, entry in world.vocabulary.items()}
    by_table = SimpleNamespace(encodeBytes=ids.__getitem__)  # the package's own is slow to load, and says the same
    return {"world": world, "rust": test_tokenizer.RWKVTokenizer(), "trie": by_table}


TOOL_FAULTS = (
    ToolFault(
        name="any-word-split",
        wrong="' council' becomes two tokens",
        patches=_splitting(b" council"),
        meant=(test_tokenizer.test_every_entry_is_its_own_encoding, _tokenizers),
    ),
    ToolFault(
        name="lambada-without-start",
        wrong="LAMBADA's passages begin without token 0",
        patches=_without_start,
        meant=(test_lambada_documents.test_protocol_by_hand, dict),
    ),
    ToolFault(
        name="lambada-first-token-only",
        wrong="LAMBADA's accuracy looks at the first token of the last word only",
        patches=_first_token_only,
        meant=(test_lambada_results.test_a_result_by_hand, dict),
    ),
    ToolFault(
        name="sampling-timed",
        wrong="the time of a decode step has the sampling of the next token in it",
        patches=_sampling,
        meant=(
            test_throughput.test_only_the_call_is_timed,
            lambda: {"engine": test_throughput.KnownEngine(test_throughput.Clock())},
        ),
    ),
    ToolFault(
        name="cache-key-without-weights",
        wrong="the cache's key leaves the weights out, so that it answers with another checkpoint's bmodel",
        patches=_key_without_weights,
        meant=(test_compiler.test_keys_tell_apart, _job),
    ),
)
"""All of them."""
