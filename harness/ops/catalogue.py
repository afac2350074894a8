"""All blocks, by name."""

from __future__ import annotations

from harness.ops.blocks.decay import DECAY, DECAY_SUM
from harness.ops.blocks.edges import EMBEDDING, HEAD
from harness.ops.blocks.lora import LORA_DECAY, LORA_GATE, LORA_RATE
from harness.ops.blocks.mixing import BONUS, CHANNEL_MIX
from harness.ops.blocks.norms import GROUP_NORM, LAYER_NORM
from harness.ops.blocks.shift import TOKEN_SHIFT
from harness.ops.blocks.wkv import CAUSAL_MASK, KEY_NORM, WKV_CHUNK, WKV_STEP

BLOCKS = {
    block.name: block
    for block in (
        EMBEDDING,
        LAYER_NORM,
        TOKEN_SHIFT,
        LORA_DECAY,
        LORA_GATE,
        LORA_RATE,
        DECAY,
        DECAY_SUM,
        KEY_NORM,
        WKV_STEP,
        CAUSAL_MASK,
        WKV_CHUNK,
        GROUP_NORM,
        BONUS,
        CHANNEL_MIX,
        HEAD,
    )
}
