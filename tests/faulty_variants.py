"""Graphs that are wrong on purpose, as a pytest plugin: ``pytest -p faulty_variants suites/ --variant NAME``."""

import math

from torch import Tensor

from compile.graphs.model import Block, ChannelMix, Rwkv7
from compile.graphs.time_mix import TimeMix
from harness.cases import VARIANTS


class _DecayOff(TimeMix):
    """The decay's constant e^(-1/2) is 5 % too large."""

    lowest_log_decay = -1.05 * math.exp(-0.5)


class _ReluDropped(ChannelMix):
    """The square is taken of the key itself."""

    def activation(self, key: Tensor) -> Tensor:
        return key * key


class _DecayOffBlock(Block):
    time_mix = _DecayOff


class _ReluDroppedBlock(Block):
    channel_mix = _ReluDropped


class DecayOff(Rwkv7):
    """Wrong decay in every layer."""

    block = _DecayOffBlock


class ReluDropped(Rwkv7):
    """No ReLU in any layer."""

    block = _ReluDroppedBlock


VARIANTS |= {"decay-off-5-percent": DecayOff, "relu-dropped": ReluDropped}
