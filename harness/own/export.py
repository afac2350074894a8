"""The arrow "export" of somebody else's ONNX: its numbers before any compiler, by the caps of the port's precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.check import Check
from harness.parity import TOKENS, any_tokens
from harness.prompts import prompt
from reference.state import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compile.spec import Quantization
    from harness.cases import Case
    from harness.limits import Limits
    from harness.own.onnx_port import OnnxPort
    from harness.targets.base import Target


def judge_export(port: OnnxPort, case: Case, oracle: Target, limits: Mapping[Quantization, Limits]) -> None:
    """See that ONNX Runtime gives the reference's numbers for the case's net, from the zero state and from another.

    It is done once for a case, and remembered: what is built on a graph that is wrong says nothing of the compiler.

    Raises:
        AssertionError: it does not.
    """
    __tracebackhide__ = True
    if case.id not in port.judged:
        port.judged[case.id] = _found(port, case, oracle, limits[case.quantization])
    if port.judged[case.id]:
        where = "the port's ONNX itself, or its map, is wrong; in ONNX Runtime, before any compiler"
        raise AssertionError(f"{where}: {port.judged[case.id]}")


def _found(port: OnnxPort, case: Case, oracle: Target, limits: Limits) -> str:
    target, model = port.target(case), port.model
    state = State.random(model.checkpoint.shape, seed=0, dtype=torch.float32).arrays()
    length = max(TOKENS // case.graph.T, 1) * case.graph.T
    texts = [(prompt(model, length), None), (any_tokens(model.checkpoint.shape.n_vocab, length), state)]
    for tokens, start in texts:
        check = Check(limits=limits)
        want, got = oracle.run(tokens, start), target.run(tokens, start)
        where = "from the zero state" if start is None else "from a random state"
        try:
            check.state(want, got.state)
            check.logits(want, got)
        except AssertionError as error:
            return f"{where}: {error}"
    return ""
