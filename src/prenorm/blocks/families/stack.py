"""The blocks of a family's model, layer by layer."""

import dataclasses

import torch
from torch import nn

from ...config import ModelConfig
from ...family import Family, Residual
from ...layers.rope import RotaryEmbedding
from .block import FamilyBlock
from .parallel import ParallelBlock
from .parallel_two_norms import ParallelTwoNormsBlock
from .post_norm import PostNormBlock
from .pre_norm import PreNormBlock
from .sandwich import SandwichBlock

BLOCKS: dict[Residual, type[FamilyBlock]] = {
    "pre": PreNormBlock,
    "post": PostNormBlock,
    "sandwich": SandwichBlock,
    "parallel": ParallelBlock,
    "parallel_two_norms": ParallelTwoNormsBlock,
}


def family_blocks(
    config: ModelConfig, family: Family, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.ModuleList:
    """Blocks with the window, the rotation and the frequencies of each layer; those of a kind share a plan."""
    rope, windowed = (None, None) if family.learned_positions else _rotations(config, family, device)
    blocks = nn.ModuleList()
    for layer in range(config.num_layers):
        window = config.window if not family.windows else family.windows[layer] or None
        rotates = not family.rotated or family.rotated[layer]
        own = None if not rotates else rope if window is None else windowed
        record = _of_layer(family, config.head_dim, layer)
        blocks.append(BLOCKS[family.residual](config, record, own, window, device=device, dtype=dtype))
    return blocks


def _rotations(
    config: ModelConfig, family: Family, device: torch.device | str | None
) -> tuple[RotaryEmbedding, RotaryEmbedding]:
    """The rotation of layers that see everything, and that of layers with a window."""
    same = (config.head_dim if family.rotary_dim is None else family.rotary_dim, config.max_seq_len)
    rope = RotaryEmbedding(*same, config.rope_theta, config.rope_interleaved, config.rope_scaling, device=device)
    if family.window_rope_theta is None:
        return rope, rope
    theta, scaling = family.window_rope_theta, family.window_rope_scaling
    return rope, RotaryEmbedding(*same, theta, config.rope_interleaved, scaling, device=device)


def _of_layer(family: Family, head_dim: int, layer: int) -> Family:
    """The record with the scale of scores that this layer has."""
    if not family.attention_scale_by_layer:
        return family
    scale = head_dim**-0.5 if family.attention_scale is None else family.attention_scale
    return dataclasses.replace(family, attention_scale=scale / (layer + 1))
