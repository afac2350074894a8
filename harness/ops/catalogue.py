"""All blocks, by name."""

from __future__ import annotations

from harness.ops.blocks.mixing import BONUS, CHANNEL_MIX
from harness.ops.blocks.norms import GROUP_NORM, LAYER_NORM
from harness.ops.blocks.shift import TOKEN_SHIFT

BLOCKS = {block.name: block for block in (TOKEN_SHIFT, LAYER_NORM, GROUP_NORM, BONUS, CHANNEL_MIX)}
