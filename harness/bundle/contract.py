"""A bundle's inputs and outputs, as a map that ``pytest suites/ --io`` reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compile.spec import GraphKind
from runtime.binding import Dtype
from runtime.nets import rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.cases import Case
    from harness.checkpoints import Model

_STATES = {
    "time_mix_shift": ("att.shift", "channel"),
    "wkv": ("att.state", "head value key"),
    "channel_mix_shift": ("ffn.shift", "channel"),
}


def contract_of(case: Case, model: Model, described: Sequence[tuple[Mapping[str, Any], str]]) -> str:
    """The map of our own graphs.

    Args:
        case: any of the bundle's.
        model: what they were compiled from.
        described: the nets, as :func:`runtime.description.describe` tells of them, with their files.
    """
    lines = [
        f'name = "{case.variant}_bundle"',
        f"# checkpoint: {model.checkpoint.name}, sha256 {model.checkpoint.sha256}; give it with --checkpoint",
        f'codec = "{model.codec.value}"',
        f'precision = "{case.quantization.value}"',
        'order = "layers"',
    ]
    for net, _ in described:
        tokens = net["inputs"][0]["shape"][1]
        every = net["name"].startswith(GraphKind.PREFILL_ALL.value)
        lines += ["", f"[nets.{net['name']}]", f"tokens = {tokens}", f'logits = "{"every" if every else "last"}"']
    first = described[0][0]
    section = "token" if rows_of(first["inputs"][0]) is None else "embedding"
    dtype = Dtype(first["inputs"][0]["dtype"]).name
    lines += ["", f"[{section}]", f'input = "{first["inputs"][0]["name"]}"', f'dtype = "{dtype}"']
    lines += ["", "[logits]", 'output = "logits"', f'dtype = "{Dtype(first["outputs"][0]["dtype"]).name}"']
    for number, (kind, (name, layout)) in enumerate(_STATES.items(), start=1):
        dtype = Dtype(first["inputs"][number]["dtype"]).name
        lines += ["", f"[states.{kind}]", f'input = "blocks.{{i}}.{name}"', f'output = "blocks.{{i}}.{name}.next"']
        lines += [f'layout = "{layout}"', f'dtype = "{dtype}"']
    return "\n".join(lines) + "\n"
