"""The blocks of a family's model, layer by layer."""

import torch
from torch import nn

from ...config import ModelConfig
from ...family import Family, Residual
from ...layers.rope import RotaryEmbedding
from .block import FamilyBlock
from .parallel import ParallelBlock
from .post_norm import PostNormBlock
from .pre_norm import PreNormBlock
from .sandwich import SandwichBlock

BLOCKS: dict[Residual, type[FamilyBlock]] = {
    "pre": PreNormBlock,
    "post": PostNormBlock,
    "sandwich": SandwichBlock,
    "parallel": ParallelBlock,
}


def family_blocks(
    config: ModelConfig, family: Family, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.ModuleList:
    """Blocks with the window, rotation and frequencies of each layer; layers of a kind share a plan."""
    width = config.head_dim if family.rotary_dim is None else family.rotary_dim
    same = (width, config.max_seq_len)
    rope = RotaryEmbedding(*same, config.rope_theta, config.rope_interleaved, config.rope_scaling, device=device)
    windowed = rope
    if family.window_rope_theta is not None:
        theta, scaling = family.window_rope_theta, family.window_rope_scaling
        windowed = RotaryEmbedding(*same, theta, config.rope_interleaved, scaling, device=device)
    blocks = nn.ModuleList()
    for layer in range(config.num_layers):
        window = config.window if not family.windows else family.windows[layer] or None
        rotates = not family.rotated or family.rotated[layer]
        own = None if not rotates else rope if window is None else windowed
        blocks.append(BLOCKS[family.residual](config, family, own, window, device=device, dtype=dtype))
    return blocks
