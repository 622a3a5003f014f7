"""Multi-head self-attention with rotary positions, grouped heads, a window, packed documents and a cache."""

from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ..ops.attention import scaled_dot_product_attention
from ..ops.heads import merge_heads, split_heads
from ..ops.masks import check_window
from ..ops.rope import rotate
from ..validation import attention_sizes, check_dropout, check_flag
from .layer_cache import LayerCache, device_and_dtype
from .linear import Linear
from .norm import RMSNorm
from .plan import AttentionPlan, is_untouched, planned
from .rope import RotaryEmbedding


class SelfAttention(nn.Module):
    """Queries, keys and values from x, rotary positions, attention in each head, and the output projection.

    num_kv_heads < num_heads gives grouped-query attention (arXiv:2305.13245); qk_norm=True applies an RMSNorm over
    head_dim to queries and keys before the rotation, as Qwen3 does (Henry et al. 2020, arXiv:2010.04245).
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        rope: RotaryEmbedding | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = False,
        window: int | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        o_bias: bool = False,
        dropout: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        num_kv_heads, head_dim = attention_sizes(d_model, num_heads, num_kv_heads, head_dim, rotary=rope is not None)
        check_flag("causal", causal)
        check_flag("qk_norm", qk_norm)
        check_window(window, causal=causal)
        check_dropout(dropout)
        if rope is not None and rope.head_dim != head_dim:
            raise ConfigError(
                f"rope.head_dim must equal the attention's head_dim, but it is {rope.head_dim} and head_dim is "
                f"{head_dim}; RotaryEmbedding({head_dim}, ...) would do."
            )
        self.d_model, self.num_heads, self.num_kv_heads, self.head_dim = d_model, num_heads, num_kv_heads, head_dim
        self.causal, self.window, self.dropout = causal, window, dropout
        self.q_proj = Linear(d_model, num_heads * head_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.k_proj = Linear(d_model, num_kv_heads * head_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.v_proj = Linear(d_model, num_kv_heads * head_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.o_proj = Linear(num_heads * head_dim, d_model, bias=o_bias, device=device, dtype=dtype)
        self.q_norm = RMSNorm(head_dim, eps, device=device, dtype=dtype) if qk_norm else None
        self.k_norm = RMSNorm(head_dim, eps, device=device, dtype=dtype) if qk_norm else None
        self.rope = rope

    def forward(
        self,
        x: Float[Tensor, "*batch seq {self.d_model}"],
        token_positions: Int[Tensor, "*positions seq"] | None = None,
        *,
        mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"] | None = None,
        segment_ids: Int[Tensor, "*batch seq"] | None = None,
        cache: LayerCache | None = None,
        plan: AttentionPlan | None = None,
    ) -> Float[Tensor, "*batch seq {self.d_model}"]:
        """Attention over x. Arguments as in `TransformerBlock.forward`."""
        if plan is None:
            self._check_arguments(x, token_positions)
            options: dict[str, Any] = {"mask": mask, "segment_ids": segment_ids, "cache": cache}
            return planned(partial(FORWARD, self, x, **options), self, x, token_positions, **options)
        q, k, v = self.project(x)
        if self.rope is not None and plan.cos is not None and plan.sin is not None:
            q, k = (self.rotate(one, plan.cos, plan.sin) for one in (q, k))
        if cache is not None and plan.slots is not None:
            k, v = cache.store(k, v, plan.slots)
        window, dropout = self.window if plan.causal else None, self.dropout if self.training else 0.0
        attended = self.attend(q, k, v, plan.mask, causal=plan.causal, window=window, dropout=dropout)
        return self.o_proj(merge_heads(attended))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., heads, seq, head_dim), before the rotation."""
        q, k, v = (split_heads(proj(x), self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated queries or keys."""
        return rotate(x, cos, sin, interleaved=cast(RotaryEmbedding, self.rope).interleaved)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        """The attention output of each head. Options as in `scaled_dot_product_attention`."""
        return scaled_dot_product_attention(q, k, v, mask, **options)

    def make_cache(
        self, batch_size: int, max_seq_len: int, dtype: torch.dtype | None = None, *, rewind: int = 0
    ) -> LayerCache:
        """An empty cache for this layer, by default in the dtype of its weights, or that of autocast.

        With a window it holds only the window, whatever max_seq_len is, plus `rewind` tokens: the most that
        `LayerCache.rewind` may take back.
        """
        device, own = device_and_dtype(self.k_proj)
        if dtype is None and own != torch.float64 and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)  # the dtype of the keys
        sizes = (batch_size, self.num_kv_heads, max_seq_len, self.head_dim)
        return LayerCache(*sizes, window=self.window, rewind=rewind, dtype=dtype or own, device=device)

    def _check_arguments(self, x: Tensor, token_positions: Tensor | None) -> None:
        if token_positions is not None and self.rope is None:
            raise ConfigError(
                "token_positions are used only for rotary positions, but this attention has no rope; leave them out."
            )
        if x.ndim < 2 or x.shape[-1] != self.d_model:
            raise ShapeError(
                f"x must be (..., seq, d_model) with d_model = {self.d_model}, but it is {tuple(x.shape)}."
            )


FORWARD = SelfAttention.forward  # kept, so that a later replacement is noticed


def untouched_attention(attention: nn.Module) -> SelfAttention | None:
    """The attention, if it runs `SelfAttention.forward` unchanged; otherwise None, since it cannot take a plan."""
    return cast(SelfAttention, attention) if is_untouched(attention, FORWARD) else None
