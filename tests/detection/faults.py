"""What is known to go wrong between a checkpoint and its tokens, put in on purpose: faults as data.

A fault replaces one piece of a good target: a formula, the weights, what an engine does around a launch, or a function
of ours. Faults of formulas and weights can be put into graphs and compiled as well: `formulas` and `weights` say what
such a graph gets wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

import runtime.session
from compile.spec import GraphKind, Quantization
from reference.emulated import stored
from reference.number_formats import NumberFormat
from reference.precision import Precision
from reference.state import State
from reference.synthetic import synthetic
from tests.detection.engine import TorchEngine
from tests.detection.formulas import DECAY_SCALE, Formulas, variant
from tokenizer.world import WorldTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from reference.checkpoint import Checkpoint
    from runtime.nets import Net

PARITY, RANDOM = "parity/from_zero_state", "parity/from_random_state"
PREFILL_DECODE, TAIL, CUTS = "state/prefill_equals_decode", "state/every_tail", "state/feed_cuts_prompts"
SESSIONS = "state/sessions_are_independent"


class Place(Enum):
    """Where a fault sits."""

    FORMULA = "formula"
    WEIGHTS = "weights"
    STATE = "state"
    LAUNCHES = "launches"
    LOGITS = "logits"
    TOKENIZER = "tokenizer"


@dataclass(frozen=True, slots=True)
class Magnitude:
    """A fault that can be smaller.

    Attributes:
        given: how large it is where nothing else is said.
        unit: what the number means.
        make: the pieces of a fault of that size.
        smallest: below this, nobody looks.
    """

    given: float
    unit: str
    make: Callable[[float], dict[str, Any]]
    smallest: float


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        name: short, with hyphens.
        wrong: what is wrong, in a sentence.
        place: where.
        meant: the check that should catch it.
        says: what its message must hold, for a reader to be led to the fault.
        formulas: with the fault in it.
        weights: makes wrong tensors of the right ones.
        kinds: the graphs whose formulas and weights are wrong; the other kinds are right.
        engine: with the fault in it.
        patches: puts a faulty function of ours in, while it is entered.
        magnitude: where it has one.
        precision: of the case that shows it.
        only: the precisions at which it is a fault; empty for all.
        model: the checkpoint that shows it: a name of `tests.detection.good.MODELS`.
        unseen: why the shipped checkpoint does not show it, where it is another that does.
        undetectable: why no check catches it; empty where one must.
    """

    name: str
    wrong: str
    place: Place
    meant: str
    says: str = r"should be <="
    formulas: type[Formulas] = Formulas
    weights: Callable[[Checkpoint], Mapping[str, Tensor]] | None = None
    kinds: tuple[GraphKind, ...] = tuple(GraphKind)
    engine: type[TorchEngine] = TorchEngine
    patches: Callable[[], AbstractContextManager[object]] | None = None
    magnitude: Magnitude | None = None
    precision: Quantization = Quantization.F16
    only: tuple[Quantization, ...] = ()
    model: str = "shipped"
    unseen: str = ""
    undetectable: str = ""

    def at(self, size: float) -> Fault:
        """The same fault in another size."""
        assert self.magnitude is not None
        return replace(self, **self.magnitude.make(size))


def sized(
    given: float, unit: str, make: Callable[[float], dict[str, Any]], smallest: float | None = None
) -> dict[str, Any]:
    """The fields of a fault that has a magnitude; it is followed down to a thousandth where nothing else is said."""
    return {"magnitude": Magnitude(given, unit, make, given / 1000 if smallest is None else smallest), **make(given)}


# Formulas


def _decay_off(share: float) -> dict[str, Any]:
    return {"formulas": variant(decay_scale=(1 + share) * DECAY_SCALE)}


def _decay_clamped(by: float) -> dict[str, Any]:
    lowest = -DECAY_SCALE + by
    return {"formulas": variant(log_decay=lambda self, d: Formulas.log_decay(self, d).clamp(min=lowest))}


def _group_norm_eps(less: float) -> dict[str, Any]:
    return {"formulas": variant(group_norm_eps=64e-5 * (1 - less))}


def _bonus_off(share: float) -> dict[str, Any]:
    return {"formulas": variant(bonus=lambda self, *x: (1 - share) * Formulas.bonus(self, *x))}


def _residual_off(share: float) -> dict[str, Any]:
    def value_residual(_: Formulas, v: Tensor, v_first: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
        return v + (v_first - v) * mix * (1 - share), v_first

    return {"formulas": variant(value_residual=value_residual)}


def _over_all_channels(y: Tensor, eps: float) -> Tensor:
    flat = y.reshape(len(y), -1)
    return torch.nn.functional.layer_norm(flat, flat.shape[-1:], eps=eps)


def _wkv_in(keep: Callable[[Tensor], Tensor]) -> type[Formulas]:
    """The WKV state stored in another format after every token."""

    def wkv(self: Formulas, r: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        *streams, S = rest
        rows = []
        for t in range(len(r)):
            y, S = Formulas.wkv(self, *(x[t : t + 1] for x in (r, *streams)), keep(S))
            rows.append(y)
        return torch.cat(rows), keep(S)

    return variant(wkv=wkv)


def _steps(share: float) -> dict[str, Any]:
    """Whole steps, the largest number of a row being 1 / *share* of them: 127 in 8 bits."""

    def keep(S: Tensor) -> Tensor:
        step = S.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) * share
        return (S / step).round() * step

    return {"formulas": _wkv_in(keep)}


def _without_epsilon(_: Formulas, k: Tensor) -> Tensor:
    return k * torch.rsqrt((k * k).sum(dim=-1, keepdim=True))


FORMULAS = (
    Fault(
        name="decay-off",
        wrong="the decay's constant e^(-1/2) is 1 % too large",
        place=Place.FORMULA,
        meant=RANDOM,
        **sized(0.01, "share of the constant", _decay_off),
    ),
    Fault(
        name="decay-clamped",
        wrong="the logarithm of the decay is kept above -0.5, so w above 0.607",
        place=Place.FORMULA,
        meant=PARITY,
        **sized(0.1065, "nats above the lowest, -0.6065", _decay_clamped),
    ),
    Fault(
        name="key-without-epsilon",
        wrong="the removal key is divided by its length without a floor",
        place=Place.FORMULA,
        meant=PARITY,
        says="NaN or Inf",
        formulas=variant(removal_key=_without_epsilon),
        model="zero key",
        unseen="none of its removal keys has the length 0, whatever the tokens",
    ),
    Fault(
        name="key-norm-axis",
        wrong="the removal key is normalised over the heads in place of a head's channels",
        place=Place.FORMULA,
        meant=PARITY,
        says="NaN or Inf",  # the state grows without end
        formulas=variant(removal_key=lambda _, k: torch.nn.functional.normalize(k, dim=-2, eps=1e-12)),
    ),
    Fault(
        name="value-residual-missing",
        wrong="later blocks keep their own values",
        place=Place.FORMULA,
        meant=PARITY,
        **sized(1.0, "share of the residual", _residual_off),
    ),
    Fault(
        name="value-residual-layer",
        wrong="v_first is of the block before in place of block 0; shows from the third block on",
        place=Place.FORMULA,
        meant=PARITY,
        formulas=variant(
            value_residual=lambda _, v, v_first, mix: (v + (v_first - v) * mix, v),
        ),
        model="three layers",
        unseen="of two blocks, the second has block 0 before it either way",
    ),
    Fault(
        name="bonus-missing",
        wrong="a token adds nothing of itself",
        place=Place.FORMULA,
        meant=PARITY,
        **sized(1.0, "share of the bonus", _bonus_off),
    ),
    Fault(
        name="group-norm-epsilon",
        wrong="the group norm's epsilon is 1e-5 in place of 64e-5",
        place=Place.FORMULA,
        meant=PARITY,
        **sized(63 / 64, "share of 64e-5 that is missing", _group_norm_eps),
        model="small values",
        unseen="what its heads give has a variance far above either epsilon",
    ),
    Fault(
        name="group-norm-axis",
        wrong="the group norm runs over all channels in place of each head's",
        place=Place.FORMULA,
        meant=PARITY,
        formulas=variant(group_norm=lambda self, y: _over_all_channels(y, self.group_norm_eps)),
    ),
    Fault(
        name="relu-dropped",
        wrong="the channel-mix squares the key itself",
        place=Place.FORMULA,
        meant=PARITY,
        formulas=variant(activation=lambda _, key: key * key),
    ),
    Fault(
        name="square-dropped",
        wrong="the channel-mix's ReLU is not squared",
        place=Place.FORMULA,
        meant=PARITY,
        formulas=variant(activation=lambda _, key: torch.relu(key)),
    ),
    Fault(
        name="gate-missing",
        wrong="the time-mix's output is not gated",
        place=Place.FORMULA,
        meant=PARITY,
        formulas=variant(gate=lambda _, g: torch.ones_like(g)),
    ),
    Fault(
        name="embedding-norm-missing",
        wrong="no layer norm stands between the embedding and block 0",
        place=Place.FORMULA,
        meant=PARITY,
        formulas=variant(embedding_norm=lambda _, x: x),
    ),
    Fault(
        name="state-bf16",
        wrong="the WKV state is stored in bfloat16 inside a bmodel that says float32",
        place=Place.STATE,
        meant=RANDOM,
        says="WKV state in: got BF16, but should be F32",
        formulas=_wkv_in(NumberFormat.BF16.keep),
    ),
    Fault(
        name="state-fp16",
        wrong="the WKV state is stored in float16 inside a bmodel that says float32",
        place=Place.STATE,
        meant=RANDOM,
        says="WKV state in: got F16, but should be F32",
        formulas=_wkv_in(NumberFormat.FP16.keep),
    ),
    Fault(
        name="state-int8",
        wrong="the WKV state is stored in 8 bits, with a step for each row",
        place=Place.STATE,
        meant=RANDOM,
        **sized(1 / 127, "step, share of a row's largest number", _steps),
    ),
    Fault(
        name="decode-wrong",
        wrong="prefill is right, decode has no bonus",
        place=Place.FORMULA,
        meant=PREFILL_DECODE,
        kinds=(GraphKind.DECODE,),
        **_bonus_off(1.0),
    ),
    Fault(
        name="prefill-wrong",
        wrong="decode is right, prefill has no bonus",
        place=Place.FORMULA,
        meant=PREFILL_DECODE,
        kinds=(GraphKind.PREFILL, GraphKind.PREFILL_ALL),
        **_bonus_off(1.0),
    ),
)

# Weights


def _changed(checkpoint: Checkpoint, **changes: Tensor) -> dict[str, Tensor]:
    return dict(checkpoint.tensors) | {name.replace("__", "."): tensor for name, tensor in changes.items()}


def _swapped(checkpoint: Checkpoint) -> dict[str, Tensor]:
    t = checkpoint.tensors
    return _changed(checkpoint, emb__weight=t["head.weight"], head__weight=t["emb.weight"])


def _truncated(name: str, rows: int) -> Callable[[Checkpoint], dict[str, Tensor]]:
    """The last rows of a matrix ``[V, C]`` lost: they hold zeros."""

    def truncate(checkpoint: Checkpoint) -> dict[str, Tensor]:
        cut = checkpoint.tensors[name].clone()
        cut[len(cut) - rows :] = 0
        return dict(checkpoint.tensors) | {name: cut}

    return truncate


def _head_truncated(rows: float) -> dict[str, Any]:
    return {"weights": _truncated("head.weight", round(rows))}


def _embedding_truncated(rows: float) -> dict[str, Any]:
    return {"weights": _truncated("emb.weight", round(rows))}


def _layer_from_another(checkpoint: Checkpoint) -> dict[str, Tensor]:
    tensors = dict(checkpoint.tensors)
    return tensors | {
        name.replace("blocks.0.", "blocks.1."): t for name, t in tensors.items() if name.startswith("blocks.0.ffn.")
    }


def _ids_swapped(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The embeddings of space and e, in World's bytes ids 33 and 102."""
    swapped = checkpoint.tensors["emb.weight"].clone()
    swapped[[33, 102]] = swapped[[102, 33]]
    return _changed(checkpoint, emb__weight=swapped)


def _noisy(share: float) -> dict[str, Any]:
    """Every matrix off by seeded noise, *share* of its root mean square."""

    def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {
            name: t + share * t.square().mean().sqrt() * torch.randn(t.shape, generator=generator)
            if t.dim() == 2
            else t
            for name, t in checkpoint.tensors.items()
        }

    return {"weights": weights}


def _in_8_bits(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    return stored(checkpoint, Precision.W8F16).tensors


class _WrongGroups(Formulas):
    """Weights coded in groups of 32 inputs in place of 64."""

    group = 32

    def stored(self, checkpoint: Checkpoint, precision: Precision) -> Checkpoint:
        return stored(checkpoint, precision, self.group)


def _of_another(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    return synthetic(checkpoint.shape).tensors


WEIGHTS = (
    Fault(
        name="head-and-embedding-swapped",
        wrong="head and embedding, of equal shapes, stand in each other's place",
        place=Place.WEIGHTS,
        meant=PARITY,
        weights=_swapped,
    ),
    Fault(
        name="head-truncated",
        wrong="the head's last row is lost: its logit is 0",
        place=Place.WEIGHTS,
        meant=PARITY,
        **sized(1, "rows", _head_truncated, smallest=1),
    ),
    Fault(
        name="embedding-truncated",
        wrong="the embedding's last row is lost",
        place=Place.WEIGHTS,
        meant=RANDOM,
        **sized(1, "rows", _embedding_truncated, smallest=1),
    ),
    Fault(
        name="layer-from-another",
        wrong="layer 1 has the channel-mix of layer 0",
        place=Place.WEIGHTS,
        meant=PARITY,
        weights=_layer_from_another,
    ),
    Fault(
        name="ids-swapped",
        wrong="two tokens have each other's embedding",
        place=Place.WEIGHTS,
        meant=PARITY,
        weights=_ids_swapped,
    ),
    Fault(
        name="another-checkpoint",
        wrong="the cache answers with the bmodel of another checkpoint of equal sizes",
        place=Place.WEIGHTS,
        meant=PARITY,
        weights=_of_another,
    ),
    Fault(
        name="weights-noisy",
        wrong="every matrix is off by noise of 1 % of its root mean square",
        place=Place.WEIGHTS,
        meant=PARITY,
        **sized(0.01, "share of the root mean square", _noisy),
    ),
    Fault(
        name="weights-8-bits",
        wrong="a bmodel that says F16 has its matrices coded in 8 bits",
        place=Place.WEIGHTS,
        meant=PARITY,
        weights=_in_8_bits,
        only=(Quantization.F16,),
    ),
    Fault(
        name="group-size-w4",
        wrong="4-bit codes share a step among 32 inputs in place of 64",
        place=Place.WEIGHTS,
        meant=PARITY,
        formulas=_WrongGroups,
        precision=Quantization.W4F16,
        only=(Quantization.W4F16,),
    ),
    Fault(
        name="group-size-w8",
        wrong="8-bit codes share a step among 32 inputs in place of 64",
        place=Place.WEIGHTS,
        meant=PARITY,
        formulas=_WrongGroups,
        precision=Quantization.W8F16,
        only=(Quantization.W8F16,),
    ),
)

# What an engine does around a launch


class _Forgets(TorchEngine):
    """Prefill leaves the state as it was."""

    def launch(self, session: int, net: Net, tokens: list[int]) -> tuple[Tensor, State]:
        logits, after = super().launch(session, net, tokens)
        return logits, after if net.tokens == 1 else self.states[session]


class _OneState(TorchEngine):
    """Every launch reads the state of the session that was started last."""

    def launch(self, session: int, net: Net, tokens: list[int]) -> tuple[Tensor, State]:
        own, self.states[session] = self.states[session], self.states[max(self.states)]
        try:
            return super().launch(session, net, tokens)
        finally:
            self.states[session] = own


class _Transposed(TorchEngine):
    """Prefill takes and gives the WKV matrices with keys as rows."""

    def compute(self, net: Net, tokens: Sequence[int], state: State) -> tuple[Tensor, State]:
        if net.tokens == 1:
            return super().compute(net, tokens, state)
        logits, after = super().compute(net, tokens, replace(state, wkv=state.wkv.mT))
        return logits, replace(after, wkv=after.wkv.mT)


class _ShiftsCut(TorchEngine):
    """A chunk begins as if no token had been before it, but for the WKV state."""

    def compute(self, net: Net, tokens: Sequence[int], state: State) -> tuple[Tensor, State]:
        if net.tokens > 1:
            zeros = torch.zeros_like(state.att_shift)
            state = State(zeros, state.wkv, zeros)
        return super().compute(net, tokens, state)


class _FromZero(TorchEngine):
    """The first launch of a session starts from zeros, whatever was written before."""

    def do_start(self, *arguments: Any, **fields: Any) -> Any:
        reply = super().do_start(*arguments, **fields)
        self._fresh = getattr(self, "_fresh", set()) | {reply.fields["session"]}
        return reply

    def launch(self, session: int, net: Net, tokens: list[int]) -> tuple[Tensor, State]:
        if session in self._fresh:
            self._fresh.discard(session)
            self.states[session] = State.zeros(self.shape, torch.float32)
        return super().launch(session, net, tokens)


class _ResetKeeps(TorchEngine):
    """A session that is reset keeps its WKV state."""

    def do_clear(self, payloads: Sequence[bytes], session: int) -> Any:
        kept = self.states[session].wkv
        reply = super().do_clear(payloads, session)
        self.states[session] = replace(self.states[session], wkv=kept)
        return reply


class _WrittenTransposed(TorchEngine):
    """A state that is written has its WKV matrices with keys as rows, as files of tuned states have them."""

    def do_write(self, payloads: Sequence[bytes], session: int) -> Any:
        reply = super().do_write(payloads, session)
        self.states[session] = replace(self.states[session], wkv=self.states[session].wkv.mT)
        return reply


class _TokensSwapped(TorchEngine):
    """The second and third token of a chunk change places."""

    def compute(self, net: Net, tokens: Sequence[int], state: State) -> tuple[Tensor, State]:
        if len(tokens) > 1:
            tokens = [tokens[0], tokens[2], tokens[1], *tokens[3:]]
        return super().compute(net, tokens, state)


def _logits(change: Callable[[Tensor], Tensor], *, every_launch: bool = True) -> type[TorchEngine]:
    """An engine that changes the logits ``[n, V]`` of its launches, or of each session's second one."""

    class Changed(TorchEngine):
        def launch(self, session: int, net: Net, tokens: list[int]) -> tuple[Tensor, State]:
            logits, after = super().launch(session, net, tokens)
            self.count = getattr(self, "count", {})
            self.count[session] = self.count.get(session, 0) + 1
            return (change(logits) if every_launch or self.count[session] == 2 else logits), after

    return Changed


class _Stale(TorchEngine):
    """Logits are read before the launch has written them: those of the launch before, zeros at first."""

    def launch(self, session: int, net: Net, tokens: list[int]) -> tuple[Tensor, State]:
        self.old = getattr(self, "old", {})
        logits, after = super().launch(session, net, tokens)
        stale = self.old.get(net.name, torch.zeros_like(logits))
        self.old[net.name] = logits
        return stale, after


class _OneBefore(TorchEngine):
    """A prefill's logits are those of the position before; the first are its own."""

    def launch(self, session: int, net: Net, tokens: list[int]) -> tuple[Tensor, State]:
        every, after = self.compute(net, tokens, self.states[session])
        if len(every) > 1:
            every = torch.cat([every[:1], every[:-1]])
        return every if net.every_position else every[-1:], after


def _at_one(value: float) -> Callable[[Tensor], Tensor]:
    def put(logits: Tensor) -> Tensor:
        changed = logits.clone()
        changed[-1, -1] = value
        return changed

    return put


def _scaled(by: float) -> dict[str, Any]:
    return {"engine": _logits(lambda logits: logits * (1 + by))}


ENGINE = (
    Fault(
        name="state-not-written-back",
        wrong="prefill leaves the session's state as it was",
        place=Place.STATE,
        meant=PARITY,
        engine=_Forgets,
    ),
    Fault(
        name="state-of-another-session",
        wrong="launches read the state of the session that was started last",
        place=Place.STATE,
        meant=SESSIONS,
        engine=_OneState,
    ),
    Fault(
        name="state-transposed",
        wrong="prefill takes and gives the WKV matrices transposed, decode does not",
        place=Place.STATE,
        meant=PARITY,
        says="att.state",
        engine=_Transposed,
    ),
    Fault(
        name="shift-not-carried",
        wrong="the first token of a chunk sees no token before it",
        place=Place.STATE,
        meant=PARITY,
        engine=_ShiftsCut,
    ),
    Fault(
        name="only-from-zero",
        wrong="the first launch of a session starts from zeros, whatever state was set",
        place=Place.STATE,
        meant=RANDOM,
        engine=_FromZero,
    ),
    Fault(
        name="reset-keeps",
        wrong="a reset session keeps its WKV state",
        place=Place.STATE,
        meant=SESSIONS,
        says="att.state",
        engine=_ResetKeeps,
    ),
    Fault(
        name="initial-state-transposed",
        wrong="a state that is set has its WKV matrices transposed",
        place=Place.STATE,
        meant="task/tuned_state",
        says="bare-reverse: answer to",
        engine=_WrittenTransposed,
    ),
    Fault(
        name="positions-swapped",
        wrong="the second and third token of a chunk change places",
        place=Place.LAUNCHES,
        meant=PARITY,
        engine=_TokensSwapped,
    ),
    Fault(
        name="position-off-by-one",
        wrong="prefill gives the logits of the position before",
        place=Place.LOGITS,
        meant=PARITY,
        engine=_OneBefore,
    ),
    Fault(
        name="nan-everywhere",
        wrong="all logits are NaN",
        place=Place.LOGITS,
        meant=PARITY,
        says="NaN or Inf among the logits, first at position",
        engine=_logits(lambda logits: torch.full_like(logits, float("nan"))),
    ),
    Fault(
        name="nan-in-one-position",
        wrong="one logit of the second launch is NaN",
        place=Place.LOGITS,
        meant=PARITY,
        says="NaN or Inf among the logits, first at position [1-9]",
        engine=_logits(_at_one(float("nan")), every_launch=False),
    ),
    Fault(
        name="inf",
        wrong="one logit of the second launch is minus infinity",
        place=Place.LOGITS,
        meant=PARITY,
        says="NaN or Inf among the logits, first at position [1-9]",
        engine=_logits(_at_one(float("-inf")), every_launch=False),
    ),
    Fault(
        name="constant-logits",
        wrong="all logits are 1",
        place=Place.LOGITS,
        meant=PARITY,
        engine=_logits(torch.ones_like),
    ),
    Fault(
        name="logits-scaled",
        wrong="logits are 1 % too large",
        place=Place.LOGITS,
        meant=RANDOM,
        **sized(0.01, "share", _scaled),
    ),
    Fault(
        name="stale-logits",
        wrong="logits are those of the launch before",
        place=Place.LOGITS,
        meant=PARITY,
        engine=_Stale,
    ),
)

# What the runtime feeds

_PLAN = runtime.session._plan
_Plan = "list[tuple[Net, Sequence[int]]]"


def _planning(change: Callable[[Any, Sequence[Net]], Any]) -> Callable[[], AbstractContextManager[object]]:
    """Have sessions cut prompts as *change* makes of the right plan."""
    return lambda: patch.object(runtime.session, "_plan", lambda ids, nets: change(_PLAN(ids, nets), nets))


def _padded(token: int) -> Callable[[Any, Sequence[Net]], Any]:
    """The tail goes through prefill, behind as many *token* as it lacks."""

    def pad(plan: Any, nets: Sequence[Net]) -> Any:
        longest = max(nets, key=lambda net: net.tokens)
        tail = [token for net, chunk in plan if net.tokens == 1 for token in chunk]
        whole = [(net, chunk) for net, chunk in plan if net.tokens > 1]
        return [*whole, (longest, [token] * (longest.tokens - len(tail)) + tail)] if tail and whole else plan

    return pad


def _last_chunk(times: int) -> Callable[[Any, Sequence[Net]], Any]:
    """The last of several prefill chunks is fed so many times."""

    def feed(plan: Any, _: Sequence[Net]) -> Any:
        whole = [part for part in plan if part[0].tokens > 1]
        return [*whole[:-1], *whole[-1:] * times, *plan[len(whole) :]] if len(whole) > 1 else plan

    return feed


LAUNCHES = (
    Fault(
        name="padded-with-0",
        wrong="the tail of a prompt is filled up to a whole chunk with token 0, in front",
        place=Place.LAUNCHES,
        meant=CUTS,
        patches=_planning(_padded(0)),
    ),
    Fault(
        name="padded-with-33",
        wrong="the tail of a prompt is filled up to a whole chunk with token 33, a space, in front",
        place=Place.LAUNCHES,
        meant=CUTS,
        patches=_planning(_padded(33)),
    ),
    Fault(
        name="last-chunk-repeated",
        wrong="the last of several chunks is fed twice",
        place=Place.LAUNCHES,
        meant=CUTS,
        patches=_planning(_last_chunk(2)),
    ),
    Fault(
        name="last-chunk-dropped",
        wrong="the last of several chunks is not fed",
        place=Place.LAUNCHES,
        meant=CUTS,
        patches=_planning(_last_chunk(0)),
    ),
)

# Text to ids

_ENCODE = WorldTokenizer.encode_bytes


def _splitting(word: bytes) -> Callable[[], AbstractContextManager[object]]:
    """Have the World tokenizer give *word*, an entry of its vocabulary, as two."""

    def encode_bytes(self: WorldTokenizer, data: bytes) -> list[int]:
        (whole,) = _ENCODE(self, word)
        pieces = _ENCODE(self, word[:-1]) + _ENCODE(self, word[-1:])
        return [piece for token in _ENCODE(self, data) for piece in (pieces if token == whole else [token])]

    return lambda: patch.object(WorldTokenizer, "encode_bytes", encode_bytes)


TOKENIZER = (
    Fault(
        name="word-split",
        wrong="' world' becomes two tokens",
        place=Place.TOKENIZER,
        meant="tokenizer/known_encodings",
        says="'Hello world': got",
        patches=_splitting(b" world"),
    ),
    Fault(
        name="other-word-split",
        wrong="' council' becomes two tokens",
        place=Place.TOKENIZER,
        meant="tokenizer/every_entry",
        says="b' council'",
        patches=_splitting(b" council"),
    ),
)

FAULTS = (*FORMULAS, *WEIGHTS, *ENGINE, *LAUNCHES, *TOKENIZER)
"""All faults that the suites are to catch; those of tools are in `tests.detection.tool_faults`."""
