"""Multi-head self-attention with rotary positions, grouped heads, window, documents and a cache."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..config import attention_sizes, check_dropout
from ..errors import ConfigError, ShapeError
from ..ops.attention import causal_mask, check_mask, check_window, scaled_dot_product_attention
from ..ops.documents import check_segment_ids, document_positions, within_documents
from ..ops.multihead import check_position_shape, merge_heads, split_heads
from ..ops.ranges import check_length, check_positions
from ..ops.rope import rotate
from .cache import LayerCache
from .linear import Linear
from .norm import RMSNorm
from .rope import RotaryEmbedding


class SelfAttention(nn.Module):
    """Queries, keys and values from x, rotary positions, attention in each head, and the output projection.

    num_kv_heads < num_heads gives grouped-query attention (arXiv:2305.13245); qk_norm an RMSNorm over head_dim on
    queries and keys before the rotation (as Qwen3 has it; Henry et al. 2020, arXiv:2010.04245).
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
        check_window(window, causal=causal)
        check_dropout(dropout)
        if rope is not None and rope.head_dim != head_dim:
            raise ConfigError(f"the rope turns head_dim {rope.head_dim}, but the heads have {head_dim}.")
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
    ) -> Float[Tensor, "*batch seq {self.d_model}"]:
        """Attend. Arguments as in `TransformerBlock.forward`."""
        self._check(x, token_positions, segment_ids, cache)
        real = None if segment_ids is None or cache is None else segment_ids >= 0
        places = None if cache is None else cache.places(x.shape[-2], real)
        q, k, v = self._project(x, self._positions(x, token_positions, segment_ids, places))
        if cache is not None:
            assert places is not None
            if mask is not None:  # before anything is written
                check_mask(mask, (*q.shape[:-1], cache.longest_after(q.shape[-2], real)))
            k, v = cache.append(k, v, real)
            if segment_ids is not None:
                cache.keep_document(segment_ids)
            mask = self._cached_mask(q, k, places, cache, mask)
        elif segment_ids is not None:
            mask = within_documents(segment_ids, mask, self.num_heads)
        attended = scaled_dot_product_attention(
            q,
            k,
            v,
            mask,
            causal=self.causal and cache is None,
            window=self.window if cache is None else None,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.o_proj(merge_heads(attended))

    def make_cache(self, batch_size: int, max_seq_len: int, dtype: torch.dtype | None = None) -> LayerCache:
        """An empty cache for this layer, by default in the dtype of its weights."""
        weight = self.k_proj.weight
        return LayerCache(
            batch_size, self.num_kv_heads, max_seq_len, self.head_dim, dtype=dtype or weight.dtype, device=weight.device
        )

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(proj(x), self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            cos, sin = self.rope.cos_sin(positions.unsqueeze(-2), q.dtype)  # the same for all heads
            q = rotate(q, cos, sin, interleaved=self.rope.interleaved)
            k = rotate(k, cos, sin, interleaved=self.rope.interleaved)
        return q, k, v

    def _positions(
        self, x: Tensor, token_positions: Tensor | None, segment_ids: Tensor | None, places: Tensor | None
    ) -> Tensor:
        """What the tokens are rotated by: what was asked for, or their places in the document or the cache."""
        if token_positions is not None:
            positions = token_positions
        elif places is not None:
            positions = places.clamp_min(0)  # padding has no place; where it is rotated to is never seen
        elif segment_ids is not None:
            positions = document_positions(segment_ids)
        else:
            if self.rope is not None:
                check_length(x.shape[-2], self.rope.max_seq_len)
            return torch.arange(x.shape[-2], device=x.device)
        if self.rope is not None:
            check_positions(positions, self.rope.max_seq_len)
        return positions

    def _cached_mask(
        self, q: Tensor, k: Tensor, places: Tensor, cache: LayerCache, mask: Tensor | None
    ) -> Tensor | None:
        """Who may attend to whom when keys lie at their places in a cache: (batch, 1, q, kv)."""
        if not cache.ragged:
            if q.shape[-2] == 1 and self.window is None:
                return mask
            allowed = causal_mask(q.shape[-2], k.shape[-2], window=self.window, device=q.device)
        else:
            behind = places[:, None, :, None] - torch.arange(k.shape[-2], device=q.device)
            allowed = behind >= 0 if self.window is None else (behind >= 0) & (behind < self.window)
        return allowed if mask is None else mask & allowed

    def _check(
        self, x: Tensor, token_positions: Tensor | None, segment_ids: Tensor | None, cache: LayerCache | None
    ) -> None:
        if x.ndim < 2 or x.shape[-1] != self.d_model:
            raise ShapeError(
                f"x must be (..., seq, d_model) with d_model = {self.d_model}, but it is {tuple(x.shape)}."
            )
        if token_positions is not None:
            if self.rope is None:
                raise ConfigError("token_positions only rotate, but this attention has no rope; leave them out.")
            check_position_shape(token_positions, x)
        if segment_ids is not None:
            check_segment_ids(segment_ids, x)
        if cache is None:
            return
        if not isinstance(cache, LayerCache):
            raise ConfigError(f"a block takes the cache of one layer, cache[i], not a {type(cache).__name__}.")
        if x.ndim != 3:
            raise ShapeError(f"with a cache x must be (batch, seq, d_model), but it is {tuple(x.shape)}.")
        if not self.causal:
            raise ConfigError(
                "a cache needs causal=True: without it, tokens already cached would have to see those to come."
            )
        cache.check_batch(x.shape[0])
        if segment_ids is not None:
            cache.check_document(segment_ids)
