"""Graphs that are wrong on purpose: each is the right one with one piece replaced, and the real compiler takes it.

A replaced piece is a global that a right ``forward`` looks up (`_seeing`), or one of the quantities that a graph names:
every :class:`compile.graphs.named.Named` is a place where a value passes through.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from compile.graphs import time_mix
from compile.graphs.layers import constant
from compile.graphs.model import Block, ChannelMix, Rwkv7
from compile.graphs.named import Named
from compile.graphs.time_mix import TimeMix

if TYPE_CHECKING:
    from collections.abc import Callable

_LAYER_NORM = time_mix.layer_norm


def variant(
    name: str, base: type[Rwkv7] = Rwkv7, mix: type[TimeMix] = TimeMix, ffn: type[ChannelMix] = ChannelMix
) -> type[Rwkv7]:
    """A graph of these pieces; *name* tells it from others in the cache of compiles."""
    block = type(f"{name} block", (Block,), {"time_mix": mix, "channel_mix": ffn})
    return type(name, (base,), {"block": block})


class Through(nn.Module):
    """In the place of a name: what passes through is changed, and named behind that."""

    def __init__(self, change: Callable[[Tensor], Tensor], name: nn.Module) -> None:
        super().__init__()
        self.change, self.name = change, name

    def forward(self, x: Tensor) -> Tensor:
        """X, changed."""
        y: Tensor = self.name(self.change(x))
        return y


def passing(attribute: str, change: Callable[[Tensor], Tensor]) -> type[TimeMix]:
    """A time-mix in which one of the named quantities is changed."""

    class Changed(TimeMix):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            setattr(self, attribute, Through(change, getattr(self, attribute)))

    return Changed


def seeing(name: str, value: object) -> type[TimeMix]:
    """A time-mix whose formulas find *value* where they look for a global of that name."""

    class Sees(TimeMix):
        def forward(self, *inputs: Any) -> Any:
            with patch.object(time_mix, name, value):
                return super().forward(*inputs)

    return Sees


def ones(x: Tensor) -> Tensor:
    """Ones of which the compiler cannot know that they are."""
    return torch.clamp(x, 1.0, 1.0)


def zeros(x: Tensor) -> Tensor:
    """The same of zeros."""
    return torch.clamp(x, 0.0, 0.0)


def same(x: Tensor) -> Tensor:
    """The value itself."""
    return x


def bf16(x: Tensor, f32: Callable[[Tensor], Tensor] = same) -> Tensor:
    """Eight bits of each float32 number, to nearest (Veltkamp's splitting), with no cast that a compiler could see.

    *f32* marks the steps, none of which float16 can hold.
    """
    scaled = f32(x * (2.0**16 + 1))
    return f32(scaled - f32(scaled - x))


def int8(x: Tensor, f32: Callable[[Tensor], Tensor] = same) -> Tensor:
    """Whole steps, of which the largest number of a row is 127; what is added is taken off and rounds on the way."""
    largest = f32(torch.amax(f32(torch.abs(x)), dim=-1, keepdim=True))
    step = f32(torch.clamp(f32(largest * (1 / 127)), min=1e-30))
    rounder = 1.5 * 2.0**23
    return f32(f32(f32(f32(x / step) + rounder) - rounder) * step)


def over_all_channels(y: Tensor, _: Any, **options: Any) -> Tensor:
    """The group norm of ``[H, T, N]`` over heads and channels together."""
    H, T, N = y.shape
    rows = y.permute(1, 0, 2).reshape(1, T, H * N)
    normed = _LAYER_NORM(rows, (H * N,), **options)
    return normed.reshape(T, H, N).permute(1, 0, 2)


class _DecayOff(TimeMix):
    lowest_log_decay = -1.01 * math.exp(-0.5)


class _DecayClamped(TimeMix):
    def __init__(self, arrays: Any, i: int, T: int, **options: Any) -> None:
        super().__init__(arrays, i, T, **options)
        lowest = math.exp(-0.5) if T == 1 else -0.5  # of one token it is w itself
        self.decay = Through(lambda decay: torch.clamp(decay, min=lowest), self.decay)


class _OwnValues(TimeMix):
    def forward(self, x: Tensor, prev: Tensor, S: Tensor, v_first: Tensor | None) -> Any:  # noqa: ARG002 - the fault
        return super().forward(x, prev, S, None)


class _StateStored(TimeMix):
    """The WKV state is changed as it leaves the recurrence, in float32."""

    keep = staticmethod(lambda S, f32: f32(S + zeros(S)))

    def forward(self, *inputs: Any) -> Any:
        y, shift, S, v_first = super().forward(*inputs)
        return y, shift, self.keep(S, self.kept), v_first

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.kept = Named(f32=True)


class _StateBf16(_StateStored):
    keep = staticmethod(bf16)


class _StateInt8(_StateStored):
    keep = staticmethod(int8)


class _HalfState(_StateStored):
    """Nothing of the recurrence is marked as float32, only the state that comes out."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for name, _ in list(self.recurrence.named_modules()):
            if isinstance(self.recurrence.get_submodule(name), Named):
                setattr(self.recurrence, name, Named())


class _StateForgotten(_StateStored):
    def forward(self, x: Tensor, prev: Tensor, S: Tensor, v_first: Tensor | None) -> Any:
        y, shift, after, v_first = TimeMix.forward(self, x, prev, S, v_first)
        return y, shift, self.kept(S + zeros(after)), v_first


class _StateTransposed(_StateStored):
    def forward(self, x: Tensor, prev: Tensor, S: Tensor, v_first: Tensor | None) -> Any:
        y, shift, after, v_first = TimeMix.forward(self, x, prev, S.transpose(1, 2), v_first)
        return y, shift, self.keep(after.transpose(1, 2), self.kept), v_first


class _ShiftCut(TimeMix):
    def forward(self, x: Tensor, prev: Tensor, S: Tensor, v_first: Tensor | None) -> Any:
        return super().forward(x, zeros(prev), S, v_first)


class _ReluDropped(ChannelMix):
    def activation(self, key: Tensor) -> Tensor:
        return key * key


class _SquareDropped(ChannelMix):
    def activation(self, key: Tensor) -> Tensor:
        return torch.relu(key)


class _RawEmbedding(Rwkv7):
    def __init__(self, arrays: Any, **options: Any) -> None:
        super().__init__(arrays, **options)
        self.emb = constant(arrays["emb.weight"])


class _TokensSwapped(Rwkv7):
    def forward(self, token: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        pieces = [token[:, :1], token[:, 2:3], token[:, 1:2], token[:, 3:]]
        return super().forward(torch.cat(pieces, dim=1), *states)


class _OneBefore(Rwkv7):
    """The logits are those of the last token but one."""

    def forward(self, token: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        right, self.every_position = self.every_position, True
        logits, *after = super().forward(token, *states)
        self.every_position = right
        return logits[:, -2:-1], *after


class _Logits(Rwkv7):
    """Logits ``[1, T, V]`` changed at the very end."""

    change = staticmethod(lambda logits: logits)

    def forward(self, token: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        logits, *after = super().forward(token, *states)
        return self.change(logits), *after


class _Nan(_Logits):
    """Zero by zero."""

    change = staticmethod(lambda logits: zeros(logits) / zeros(logits))


class _NanAtOne(_Logits):
    """Zero by zero at position 5 of a chunk, by 1 elsewhere."""

    @staticmethod
    def change(logits: Tensor) -> Tensor:
        T = logits.shape[1]
        mask = torch.ones(1, T, 1)
        mask[0, 5] = 0
        masked = ones(logits) * mask
        return logits * masked / masked


class _Inf(_Logits):
    """One by zero at position 5 of a chunk."""

    @staticmethod
    def change(logits: Tensor) -> Tensor:
        mask = torch.ones(1, logits.shape[1], 1)
        mask[0, 5] = 0
        return logits + (1 / (ones(logits) * mask) - 1)


class _Constant(_Logits):
    change = staticmethod(ones)


class _Scaled(_Logits):
    change = staticmethod(lambda logits: logits * 1.01)


class _NoOperator(Rwkv7):
    """An operator that the compiler's front end does not know: the determinant of each WKV matrix."""

    def forward(self, token: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        logits, *after = super().forward(token, *states)
        return logits + torch.linalg.det(states[1]).mean(), *after


DECAY_OFF = variant("decay-off", mix=_DecayOff)
DECAY_CLAMPED = variant("decay-clamped", mix=_DecayClamped)
KEY_WITHOUT_EPSILON = variant("key-without-epsilon", mix=seeing("_KEY_NORM_SQUARED_FLOOR", 0.0))
OWN_VALUES = variant("value-residual-missing", mix=_OwnValues)
GROUP_NORM_EPSILON = variant("group-norm-epsilon", mix=seeing("_GROUP_NORM_EPS", 1e-5))
GROUP_NORM_AXIS = variant("group-norm-axis", mix=seeing("layer_norm", over_all_channels))
GATE_MISSING = variant("gate-missing", mix=passing("gate", ones))
RATE_MISSING = variant("rate-missing", mix=passing("rate", ones))
RELU_DROPPED = variant("relu-dropped", ffn=_ReluDropped)
RELU_FUSED = variant("relu-fused")  # right as it is written; see compile.unfused
SQUARE_DROPPED = variant("square-dropped", ffn=_SquareDropped)
RAW_EMBEDDING = variant("embedding-norm-missing", _RawEmbedding)
STATE_BF16 = variant("state-bf16", mix=_StateBf16)
STATE_FP16 = variant("state-fp16", mix=_HalfState)
STATE_INT8 = variant("state-int8", mix=_StateInt8)
STATE_FORGOTTEN = variant("state-not-written-back", mix=_StateForgotten)
STATE_TRANSPOSED = variant("state-transposed", mix=_StateTransposed)
SHIFT_CUT = variant("shift-not-carried", mix=_ShiftCut)
TOKENS_SWAPPED = variant("positions-swapped", _TokensSwapped)
ONE_BEFORE = variant("position-off-by-one", _OneBefore)
NAN = variant("nan-everywhere", _Nan)
NAN_AT_ONE = variant("nan-in-one-position", _NanAtOne)
INF = variant("inf", _Inf)
CONSTANT = variant("constant-logits", _Constant)
SCALED = variant("logits-scaled", _Scaled)
NO_OPERATOR = variant("no-such-operator", _NoOperator)
