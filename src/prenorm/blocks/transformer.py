"""The pre-norm Transformer block."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..layers.attention import SelfAttention, untouched_attention
from ..layers.dropout import Dropout
from ..layers.layer_cache import LayerCache
from ..layers.norm import RMSNorm
from ..layers.plan import AttentionPlan, planned
from ..layers.rope import RotaryEmbedding
from ..layers.swiglu import SwiGLU
from ..rope_scaling import RopeScaling
from ..validation import attention_sizes


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)): the residual path itself is never normalised.

    Norm: RMSNorm. Attention: `SelfAttention` with rotary positions, not causal unless causal=True. Feed-forward:
    SwiGLU of width d_ff. Sources: Xiong et al. 2020, arXiv:2002.04745 (pre-norm); Touvron et al. 2023,
    arXiv:2302.13971 (this combination).
    A given `rope` is used instead of a new one; blocks with the same rope can share a plan.
    Raises ConfigError for invalid sizes.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        max_seq_len: int = 2048,
        rope_theta: float = 10000.0,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = False,
        window: int | None = None,
        rope_interleaved: bool = True,
        rope_scaling: RopeScaling | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        o_bias: bool = False,
        dropout: float = 0.0,
        rope: RotaryEmbedding | None = None,
    ) -> None:
        super().__init__()
        if rope is None:
            rope_dim = attention_sizes(d_model, num_heads, num_kv_heads, head_dim)[1]
            rope = RotaryEmbedding(rope_dim, max_seq_len, rope_theta, rope_interleaved, rope_scaling, device=device)
        self.norm1 = RMSNorm(d_model, eps, device=device, dtype=dtype)
        self.attn = SelfAttention(
            d_model,
            num_heads,
            rope,
            device=device,
            dtype=dtype,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            causal=causal,
            window=window,
            qk_norm=qk_norm,
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            dropout=dropout,
            eps=eps,
        )
        self.norm2 = RMSNorm(d_model, eps, device=device, dtype=dtype)
        self.ffn = SwiGLU(d_model, d_ff, device=device, dtype=dtype)
        self.dropout = Dropout(dropout)

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
        """The block applied to x (..., seq, d_model), any leading dims; y has the same shape.

        token_positions: (seq,) or (..., seq), the rotary position of each token, below max_seq_len; they affect nothing
        else. Default: the token's position in x, in its document or in the cache.
        mask: boolean, True = may attend, (q, kv) or the dims of the scores (..., heads or 1, q or 1, kv).
        segment_ids: (..., seq): a run of equal ids is a document, which attends only to itself; negative = padding.
        cache: from `make_cache`; x is then (batch, seq, d_model), the tokens after those already in it.
        plan: given by the enclosing model instead of the arguments above, except the cache.
        Raises ShapeError, ConfigError and RangeError.
        """
        options: dict[str, Any] = {"mask": mask, "segment_ids": segment_ids, "cache": cache}
        if plan is None:
            run = partial(FORWARD, self, x, token_positions, **options)
            return planned(run, untouched_attention(self.attn), x, token_positions, **options)
        if untouched_attention(self.attn):
            options["plan"] = plan
        x = x + self.dropout(self.attn(self.norm1(x), token_positions, **options))
        return x + self.dropout(self.ffn(self.norm2(x)))

    def make_cache(
        self, batch_size: int, max_seq_len: int, dtype: torch.dtype | None = None, *, rewind: int = 0
    ) -> LayerCache:
        """An empty cache of this block's keys and values. Arguments as in `SelfAttention.make_cache`."""
        return self.attn.make_cache(batch_size, max_seq_len, dtype, rewind=rewind)


FORWARD = TransformerBlock.forward  # kept, so that a later replacement is noticed
