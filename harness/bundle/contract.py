"""A bundle's inputs and outputs, as a map that ``pytest suites/ --io`` reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compile.spec import GraphKind
from runtime.binding import Dtype
from runtime.nets import interpret, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.cases import Case
    from harness.checkpoints import Model

# By kind: the name of the tensor, how the state lies in it, and the input of a net that is the first such.
_STATES = {
    "time_mix_shift": ("blocks.{i}.att.shift", "channel", 1),
    "wkv": ("blocks.{i}.att.state", "head value key", 2),
    "channel_mix_shift": ("blocks.{i}.ffn.shift", "channel", 3),
}
_STACKED = {
    "time_mix_shift": ("shift", "(layer 0/2) channel", 1),
    "wkv": ("state", "(layer head) value key", 2),
    "channel_mix_shift": ("shift", "(layer 1/2) channel", 1),
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
    for kind, (name, layout, number) in (_STACKED if interpret(*described[0]).pieces else _STATES).items():
        dtype = Dtype(first["inputs"][number]["dtype"]).name
        lines += ["", f"[states.{kind}]", f'input = "{name}"', f'output = "{name}.next"']
        lines += [f'layout = "{layout}"', f'dtype = "{dtype}"']
    return "\n".join(lines) + "\n"
