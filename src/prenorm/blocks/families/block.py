"""What the blocks of all families share: their parts and their forward pass."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...config import ModelConfig
from ...family import Family
from ...layers.attention import untouched_attention
from ...layers.dropout import Dropout
from ...layers.family_norm import family_norm
from ...layers.gated import GatedFeedForward
from ...layers.layer_cache import LayerCache
from ...layers.plan import AttentionPlan, planned
from ...layers.rope import RotaryEmbedding
from ...layers.two_matrices import TwoMatrices
from .attention import FamilyAttention


class FamilyBlock(nn.Module, ABC):
    """A block with the parts that a family's record specifies. A subclass combines them in `add`.

    `norms`: the names of its norms.
    """

    norms: tuple[str, ...]
    norm1: nn.Module
    norm2: nn.Module
    post_norm1: nn.Module
    post_norm2: nn.Module

    def __init__(
        self,
        config: ModelConfig,
        family: Family,
        rope: RotaryEmbedding | None,
        window: int | None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name in self.norms:
            self.add_module(name, family_norm(family, config.d_model, config.eps, device=device, dtype=dtype))
        same = ("num_kv_heads", "head_dim", "qk_norm", "qkv_bias", "o_bias", "dropout", "eps")
        options: dict[str, Any] = {name: getattr(config, name) for name in same}
        options |= {"causal": True, "window": window}
        self.attn = FamilyAttention(
            config.d_model, config.num_heads, family, rope, device=device, dtype=dtype, **options
        )
        feed_forward = GatedFeedForward if family.gated else TwoMatrices
        self.ffn = feed_forward(
            config.d_model, config.d_ff, family.activation, family.ffn_bias, device=device, dtype=dtype
        )
        self.dropout = Dropout(config.dropout)
        self.scale = family.residual_scale

    def forward(
        self,
        x: Float[Tensor, "*batch seq d_model"],
        token_positions: Int[Tensor, "*positions seq"] | None = None,
        *,
        mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"] | None = None,
        segment_ids: Int[Tensor, "*batch seq"] | None = None,
        cache: LayerCache | None = None,
        plan: AttentionPlan | None = None,
    ) -> Float[Tensor, "*batch seq d_model"]:
        """The block applied to x. Arguments as in `TransformerBlock.forward`."""
        options: dict[str, Any] = {"mask": mask, "segment_ids": segment_ids, "cache": cache}
        attention = untouched_attention(self.attn)
        # A layer without rotation also receives the model's token_positions, which are meant for the other layers.
        rotates = not isinstance(self.attn, FamilyAttention) or self.attn.rope is not None
        positions = token_positions if rotates else None
        if plan is None:
            run = partial(FORWARD, self, x, positions, **options)
            return planned(run, attention, x, positions, **options)
        if attention is not None:
            options["plan"] = plan
        return self.add(x, lambda normed: self.attn(normed, positions, **options))

    @abstractmethod
    def add(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """The two lines of the block."""

    def added(self, y: Tensor) -> Tensor:
        """A sublayer's output, scaled and dropped out, as added to the residual path."""
        return self.dropout(y if self.scale == 1 else y * self.scale)

    def make_cache(
        self, batch_size: int, max_seq_len: int, dtype: torch.dtype | None = None, *, rewind: int = 0
    ) -> LayerCache:
        """An empty cache of this block's keys and values. Arguments as in `SelfAttention.make_cache`."""
        return self.attn.make_cache(batch_size, max_seq_len, dtype, rewind=rewind)


FORWARD = FamilyBlock.forward  # kept, so that a later replacement is noticed
