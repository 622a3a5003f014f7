"""The classical pre-norm decoder block: self-attention, cross-attention to an encoder's output, feed-forward."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import ConfigError
from ..layers.attention import SelfAttention, untouched_attention
from ..layers.cross_attention import MultiHeadAttention
from ..layers.decoder_cache import DecoderLayerCache
from ..layers.dropout import Dropout
from ..layers.feedforward import FeedForward
from ..layers.layer_norm import LayerNorm
from ..layers.plan import AttentionPlan, planned
from ..layers.sharded import check_gathered
from ..ops.masks import check_mask


class TransformerDecoderBlock(nn.Module):
    """Three residual lines: self-attention, cross-attention and feed-forward, each applied to a LayerNorm of x.

    Computes the same as `nn.TransformerDecoderLayer(norm_first=True, activation="gelu")`. d_ff defaults to 4 * d_model.
    In training, `dropout` applies to attention weights, to the output of the GELU and to the output of each sublayer.
    causal=True makes the self-attention causal without a mask; the cross-attention is never causal.
    Sources: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745 (pre-norm).
    Raises ConfigError for invalid sizes.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int | None = None,
        dropout: float = 0.1,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(d_model, eps, device=device, dtype=dtype)
        self.self_attn = SelfAttention(
            d_model, num_heads, device=device, dtype=dtype, causal=causal, qkv_bias=True, o_bias=True, dropout=dropout
        )
        self.norm2 = LayerNorm(d_model, eps, device=device, dtype=dtype)
        self.cross_attn = MultiHeadAttention(d_model, num_heads, dropout, device=device, dtype=dtype)
        self.norm3 = LayerNorm(d_model, eps, device=device, dtype=dtype)
        self.ffn = FeedForward(d_model, 4 * d_model if d_ff is None else d_ff, dropout, device=device, dtype=dtype)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "*batch seq d_model"],
        encoder_output: Float[Tensor, "*batch source_seq d_model"] | None = None,
        self_mask: Bool[Tensor, "*self_batch self_q_or_1 seq_so_far"] | None = None,
        cross_mask: Bool[Tensor, "*cross_batch cross_q_or_1 source_seq"] | None = None,
        *,
        segment_ids: Int[Tensor, "*batch seq"] | None = None,
        cache: DecoderLayerCache | None = None,
        plan: AttentionPlan | None = None,
    ) -> Float[Tensor, "*batch seq d_model"]:
        """The block applied to x (..., seq, d_model) and encoder_output (..., source_seq, d_model).

        self_mask, cross_mask: boolean, True = may attend, (q, kv) or the dims of the scores
        (..., heads or 1, q or 1, kv). segment_ids: as in `TransformerBlock`, for the self-attention.
        cache: from `make_cache`, which has already read encoder_output, so leave that out here. x is then (batch, seq,
        d_model), the tokens after those in the cache; needs causal=True.
        plan: given by the enclosing decoder instead of self_mask and segment_ids.
        Raises ShapeError and ConfigError.
        """
        options: dict[str, Any] = {"mask": self_mask, "segment_ids": segment_ids, "cache": cache}
        if plan is None:
            check_sources(encoder_output, cross_mask, cache, x)
            given: dict[str, Any] = {"segment_ids": segment_ids, "cache": cache}
            run = partial(FORWARD, self, x, encoder_output, self_mask, cross_mask, **given)
            return planned(run, untouched_attention(self.self_attn), x, **options)
        if untouched_attention(self.self_attn):
            options["plan"] = plan
        x = x + self.dropout(self.self_attn(self.norm1(x), **options))
        x = x + self.dropout(self.cross_attn.attend(self.norm2(x), *self._cross(encoder_output, cache), cross_mask))
        return x + self.dropout(self.ffn(self.norm3(x)))

    def make_cache(
        self,
        encoder_output: Float[Tensor, "batch source_seq d_model"],
        max_seq_len: int,
        dtype: torch.dtype | None = None,
    ) -> DecoderLayerCache:
        """A cache with the cross-attention's keys and values, and room for max_seq_len tokens per row.

        The self-attention's keys and values are stored in `dtype`, by default that of encoder_output.
        """
        check_gathered(self, "make_cache")
        return DecoderLayerCache(*self.cross_attn.project(encoder_output, encoder_output), max_seq_len, dtype=dtype)

    def _cross(self, encoder_output: Tensor | None, cache: DecoderLayerCache | None) -> tuple[Tensor, Tensor]:
        """The keys and values of the encoder output: from the cache, or computed now."""
        if cache is not None:
            return cache.cross_keys, cache.cross_values
        assert encoder_output is not None
        return self.cross_attn.project(encoder_output, encoder_output)


def check_sources(
    encoder_output: Tensor | None, cross_mask: Tensor | None, cache: DecoderLayerCache | None, x: Tensor
) -> None:
    """Raise unless the encoder output is given exactly once, in the cache or as an argument, and cross_mask fits it."""
    if cache is None:
        if encoder_output is None:
            raise ConfigError(
                "a decoder block needs encoder_output or a cache, but has neither; make_cache(encoder_output, "
                "max_seq_len) makes a cache."
            )
        return
    if not isinstance(cache, DecoderLayerCache):
        raise ConfigError(f"a decoder block takes a DecoderLayerCache, from make_cache, not {cache!r}.")
    if encoder_output is not None:
        raise ConfigError(
            "encoder_output must be left out with a cache, which already holds its keys and values; "
            "make_cache(encoder_output, max_seq_len) makes a cache for another encoder output."
        )
    if cross_mask is not None:  # before anything is stored
        check_mask(cross_mask, (*cache.cross_keys.shape[:-2], *x.shape[-2:-1], cache.cross_keys.shape[-2]))


FORWARD = TransformerDecoderBlock.forward  # kept, so that a later replacement is noticed
