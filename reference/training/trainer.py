"""The training loop: batches in, better weights out, resumable at any moment to the same bits."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from reference.atomic import replacing
from reference.shape import CheckpointError
from reference.training.optimizer import optimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor, nn

    from reference.training.documents import Batch
    from reference.training.optimizer import Schedule

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Point:
    """One step of the loss curve.

    Attributes:
        step: from 0 on.
        loss_nats: mean cross-entropy over the learned tokens of the batch.
        gradient_norm: before clipping.
        rate: the learning rate.
    """

    step: int
    loss_nats: float
    gradient_norm: float
    rate: float


class DivergedError(ArithmeticError):
    """The loss or its gradient is no longer finite: says at which step, and what to do."""


class Training:
    """A module under training.

    Attributes:
        step: the number of steps done.
        curve: a point for each of them.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Iterable[tuple[str, Tensor]],
        batch: Callable[[int], Batch],
        schedule: Schedule,
        identity: str,
    ) -> None:
        """Prepare for the first step.

        Args:
            module: takes ids ``[B, T]``, gives logits ``[B, T, V]``.
            parameters: what is trained of it, by BlinkDL's names.
            batch: makes the batch of a step, always the same for the same step.
            schedule: how long and how fast.
            identity: all else that determines the result, in words; a saved training goes on only where it is equal.
        """
        self.step = 0
        self.curve: list[Point] = []
        self._module = module
        self._named = dict(parameters)
        self._batch = batch
        self._schedule = schedule
        self._optimizer = optimizer(self._named.items(), schedule)
        self._identity = hashlib.sha256(repr((_FORMAT, identity, schedule)).encode()).hexdigest()

    @property
    def steps(self) -> int:
        """The number of steps in all."""
        return self._schedule.steps

    @property
    def finished(self) -> bool:
        """Whether every step is done."""
        return self.step >= self._schedule.steps

    def advance(self) -> Point:
        """Do one step.

        Raises:
            DivergedError: the loss is not finite; the weights are those of the step before.
        """
        rate = self._schedule.at(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        batch = self._batch(self.step)
        device = next(iter(self._named.values())).device
        with _mixed_precision(device):
            logits = self._module(batch.fed.to(device))
        learned = batch.learned.to(device)
        loss = cross_entropy(logits[learned].float(), batch.wanted.to(device)[learned])
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_grad_norm_(list(self._named.values()), self._schedule.clip)
        point = Point(self.step, loss.item(), norm.item(), rate)
        if not norm.isfinite() or not loss.isfinite():
            raise DivergedError(
                f"step {self.step}: loss {point.loss_nats}, gradient norm {point.gradient_norm}, but both should be "
                "finite: lower the learning rate"
            )
        self._optimizer.step()
        self.step += 1
        self.curve.append(point)
        return point

    def save(self, path: Path) -> None:
        """Write all that is needed to go on; the file appears whole or not at all."""
        content = {
            "identity": self._identity,
            "step": self.step,
            "curve": [tuple(asdict(point).values()) for point in self.curve],
            "parameters": {name: tensor.detach().cpu() for name, tensor in self._named.items()},
            "optimizer": self._optimizer.state_dict(),
        }
        with replacing(path, force=True) as made:
            torch.save(content, made)

    def resume(self, path: Path) -> None:
        """Go on from what :meth:`save` wrote: on a CPU, with the same number of threads, to the same bits.

        Raises:
            CheckpointError: it cannot be read, or is of another training.
        """
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever its unpickler meets
            raise CheckpointError(f"{path}: is no saved training; remove it to begin anew: {error}") from error
        if content.get("identity") != self._identity:
            raise CheckpointError(
                f"{path}: is of a training with another recipe, data, start or version of this program: choose "
                "another folder, or remove it to begin anew"
            )
        with torch.no_grad():
            for name, tensor in self._named.items():
                tensor.copy_(content["parameters"][name])
        self._optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]
        self.curve = [Point(*values) for values in content["curve"]]


def _mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """Bfloat16 for the products on a GPU, float32 throughout on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
