"""The folder that Hugging Face and flash-linear-attention use: ``config.json`` and the weights in safetensors.

Weights have flash-linear-attention's names; both halves of a low-rank pair are stored ``[out, in]``. Weights in
several files (with an index) and in ``pytorch_model.bin`` are read too; one ``model.safetensors`` is written.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from reference.formats import pth, safetensors_file
from reference.formats.blinkdl import SHIFTS, UNUSED_IN_BLOCK_0, flat_vectors, is_lora
from reference.formats.mapped import LONGEST_HEADER, MappedFile, shown
from reference.formats.safetensors_file import parse_json
from reference.shape import LAYER_NORM_EPS, CheckpointError, ModelShape, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_TORCH_WEIGHTS = "pytorch_model.bin"

_WHOLE = {
    "emb.weight": "model.embeddings.weight",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "head.weight": "lm_head.weight",
}
_NORMS = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm", "att.ln_x": "attn.g_norm"}
_IN_BLOCK = (
    {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in _NORMS.items() for part in ("weight", "bias")}
    | {f"att.x_{q}": f"attn.x_{q}" for q in SHIFTS}
    | {f"att.{vector}": f"attn.{vector}" for vector in ("k_k", "k_a", "r_k")}
    | {f"att.{q}0": f"attn.{q}_lora.lora.2.bias" for q in "wav"}
    | {f"att.{q}1": f"attn.{q}_lora.lora.0.weight" for q in "wavg"}
    | {f"att.{q}2": f"attn.{q}_lora.lora.2.weight" for q in "wavg"}
    | {f"att.{m}.weight": f"attn.{m[0]}_proj.weight" for m in ("receptance", "key", "value", "output")}
    | {"ffn.x_k": "ffn.x_k", "ffn.key.weight": "ffn.key.weight", "ffn.value.weight": "ffn.value.weight"}
)
_WHOLE_BACK = {theirs: ours for ours, theirs in _WHOLE.items()}
_IN_BLOCK_BACK = {theirs: ours for ours, theirs in _IN_BLOCK.items()}
_THEIR_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")
_MERGED = "attn.x_x"
"""The six token-shift vectors as the first exports had them: one tensor ``[6, C]``."""


def their_name(name: str) -> str:
    """flash-linear-attention's name of a tensor that BlinkDL calls *name*."""
    if name in _WHOLE:
        return _WHOLE[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_IN_BLOCK[rest]}"


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of such a folder by BlinkDL's names, in canonical shapes and the files' dtypes.

    Raises:
        CheckpointError: a file is missing, damaged or hostile, or ``config.json`` contradicts the tensors.
    """
    config = _read_config(path)
    tensors: dict[str, Tensor] = {}
    for name, tensor in _read_weights(path).items():
        for ours, part in _translated(name, tensor, path):
            if ours in tensors:
                raise CheckpointError(f"{path}: {ours} is stored twice, but should be stored once")
            tensors[ours] = part
    tensors = flat_vectors(tensors)
    used = {name: tensor for name, tensor in tensors.items() if name not in UNUSED_IN_BLOCK_0}
    _check_config(config, shape_of(used, str(path)), path)
    return tensors


def files(path: Path) -> list[Path]:
    """The files that :func:`read` reads, ``config.json`` first.

    Raises:
        CheckpointError: one that should be there is not.
    """
    for name in (_WEIGHTS, _TORCH_WEIGHTS):
        if (path / name).exists():
            return [path / CONFIG, path / name]
        index = path / f"{name}.index.json"
        if index.exists():
            return [path / CONFIG, index, *(path / part for part in sorted(set(_weight_map(index).values())))]
    raise CheckpointError(
        f"{path}: no weights; a folder in Hugging Face's layout has {_WEIGHTS} or {_TORCH_WEIGHTS}, or an index of them"
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors under their own names."""
    _, *parts = files(path)
    index = _weight_map(parts.pop(0)) if parts[0].suffix == ".json" else None
    tensors: dict[str, Tensor] = {}
    for part in parts:
        found = (safetensors_file if part.suffix == ".safetensors" else pth).read_tensors(part)
        for name, tensor in found.items():
            if index is not None and index.get(name) != part.name:
                raise CheckpointError(f"{part}: holds {name}, but the index beside it does not say so")
            tensors[name] = tensor
    for name, part_name in (index or {}).items():
        if name not in tensors:
            raise CheckpointError(f"{path / part_name}: no tensor {shown(name)}, but the index says that it is there")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Which tensor lies in which file, by an index; files outside of its folder are refused."""
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no 'weight_map' {{tensor: file}}, but an index of weights should have one")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*\.(safetensors|bin)", file):
            raise CheckpointError(
                f"{index}: {shown(name)} should lie in a .safetensors or .bin file of this folder, not in {shown(file)}"
            )
    return weight_map


def _json(path: Path) -> dict[str, Any]:
    file = MappedFile(path)
    if file.size > LONGEST_HEADER:
        raise CheckpointError(f"{path}: {file.size} bytes, but should be at most {LONGEST_HEADER}")
    return parse_json(bytes(file.take(0, file.size, "the file")), path, "the file")


def _translated(name: str, tensor: Tensor, path: Path) -> Iterator[tuple[str, Tensor]]:
    """BlinkDL's names for one of their tensors, with what belongs to each."""
    if name in _WHOLE_BACK:
        yield _WHOLE_BACK[name], tensor
        return
    in_block = _THEIR_BLOCK.fullmatch(name)
    if in_block is None:
        raise CheckpointError(
            f"{path}: a tensor {name}, but weights of flash-linear-attention's RWKV-7 are called model.… or lm_head.…"
        )
    layer, rest = in_block.groups()
    if rest == _MERGED:
        if tensor.shape[0] != len(SHIFTS):
            raise CheckpointError(f"{path}: {name} has shape {tuple(tensor.shape)}, but should have {len(SHIFTS)} rows")
        for q, vector in zip(SHIFTS, tensor, strict=True):
            yield f"blocks.{layer}.att.x_{q}", vector
    elif rest in _IN_BLOCK_BACK:
        ours = f"blocks.{layer}.{_IN_BLOCK_BACK[rest]}"
        yield ours, tensor.T if is_lora(ours) and tensor.dim() == 2 else tensor
    else:
        raise CheckpointError(f"{path}: a tensor {name}, which flash-linear-attention's RWKV-7 does not have")


def _read_config(path: Path) -> dict[str, Any]:
    config = _json(path / CONFIG)
    if config.get("model_type") != "rwkv7":
        raise CheckpointError(
            f"{path / CONFIG}: model_type is {shown(config.get('model_type'))}, but should be 'rwkv7'"
        )
    return config


_FIXED = {
    "norm_eps": LAYER_NORM_EPS,
    "norm_first": True,
    "norm_bias": True,
    "hidden_act": "sqrelu",
    "tie_word_embeddings": False,
    "attn": None,
}
"""What RWKV-7 as released leaves no choice about."""


def _sizes(shape: ModelShape) -> dict[str, Any]:
    return {
        "vocab_size": shape.n_vocab,
        "hidden_size": shape.n_embd,
        "num_hidden_layers": shape.n_layer,
        "head_dim": shape.head_size,
        "intermediate_size": shape.n_ffn,
        "decay_low_rank_dim": shape.ranks.decay,
        "a_low_rank_dim": shape.ranks.rate,
        "v_low_rank_dim": shape.ranks.value,
        "gate_low_rank_dim": shape.ranks.gate,
    }


def _check_config(config: Mapping[str, Any], shape: ModelShape, path: Path) -> None:
    """Compare what the configuration says with the tensors; what it leaves out, they decide.

    ``num_heads`` is left alone beside ``head_dim``: published exports carry a stale one, and the library ignores it.
    """
    wanted = _sizes(shape)
    if shape.n_layer == 1:
        del wanted["v_low_rank_dim"]  # block 0 has no value residual
    if config.get("head_dim") is None:
        wanted["num_heads"] = shape.n_head
    for key, from_tensors in wanted.items():
        if config.get(key) is not None and config[key] != from_tensors:
            raise CheckpointError(
                f"{path}: {CONFIG} says {key} {shown(config[key])}, but the tensors say {from_tensors}"
            )
    for key, fixed in _FIXED.items():
        if key in config and config[key] != fixed:
            raise CheckpointError(f"{path}: {CONFIG} says {key} {shown(config[key])}, but RWKV-7 has {fixed}")
    widths = config.get("value_dim")
    if widths is not None and widths != shape.n_embd and widths != [shape.n_embd] * shape.n_layer:
        raise CheckpointError(f"{path}: {CONFIG} says value_dim {shown(widths)}, but the tensors say {shape.n_embd}")


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write canonical tensors as such a folder; *path* is made. Block 0's unused tensors have no place in it."""
    tensors = {name: tensor for name, tensor in tensors.items() if name not in UNUSED_IN_BLOCK_0}
    shape = shape_of(tensors, str(path))
    (dtype, _), *_ = Counter(tensor.dtype for tensor in tensors.values()).most_common(1)
    config = (
        _sizes(shape)
        | _FIXED
        | {
            "architectures": ["RWKV7ForCausalLM"],
            "model_type": "rwkv7",
            "attn_mode": "chunk",
            "num_heads": shape.n_head,
            "hidden_ratio": shape.n_ffn / shape.n_embd,
            "value_dim": [shape.n_embd] * shape.n_layer,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": str(dtype).removeprefix("torch."),
        }
    )
    path.mkdir()
    (path / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    safetensors_file.write_tensors(
        {
            their_name(name): tensor.T if is_lora(name) else tensor.view(1, 1, -1) if ".att.x_" in name else tensor
            for name, tensor in tensors.items()
        },
        path / _WEIGHTS,
    )
