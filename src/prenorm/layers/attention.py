"""Multi-head self-attention with rotary positions, grouped heads, window, documents and a cache."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..config import attention_sizes, check_dropout
from ..errors import ConfigError, ShapeError
from ..ops.attention import (
    causal_mask,
    check_mask,
    check_window,
    columns_at,
    place_mask,
    scaled_dot_product_attention,
)
from ..ops.documents import check_segment_ids, document_positions, within_documents
from ..ops.multihead import check_position_shape, merge_heads, split_heads
from ..ops.ranges import check_length, check_positions
from ..ops.rope import rotate
from .cache import whole_call
from .layer_cache import LayerCache
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
        with whole_call(cache):
            real = None if segment_ids is None or cache is None else segment_ids >= 0
            q, k, v = self._project(x, self._positions(x, token_positions, segment_ids, cache, real))
            causal = self.causal
            if cache is not None:
                k, v, mask, causal = self._with_cache(q, k, v, mask, segment_ids, cache, real)
            elif segment_ids is not None:
                mask = within_documents(segment_ids, mask, self.num_heads)
            attended = scaled_dot_product_attention(
                q,
                k,
                v,
                mask,
                causal=causal,
                window=self.window if causal else None,
                dropout=self.dropout if self.training else 0.0,
            )
            return self.o_proj(merge_heads(attended))

    def make_cache(
        self, batch_size: int, max_seq_len: int, dtype: torch.dtype | None = None, *, rewind: int = 0
    ) -> LayerCache:
        """An empty cache for this layer, by default in the dtype of its weights, or that of autocast.

        With a window it holds the window and not more, whatever max_seq_len; `rewind` is the number of newest tokens
        that `LayerCache.rewind` may take back even so.
        """
        device, own = self.k_proj.weight.device, self.k_proj.dtype
        if dtype is None and own != torch.float64 and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)  # that of the keys
        return LayerCache(
            batch_size,
            self.num_kv_heads,
            max_seq_len,
            self.head_dim,
            window=self.window,
            rewind=rewind,
            dtype=dtype or own,
            device=device,
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
        self,
        x: Tensor,
        token_positions: Tensor | None,
        segment_ids: Tensor | None,
        cache: LayerCache | None,
        real: Tensor | None,
    ) -> Tensor:
        """What the tokens are rotated by: what was asked for, or their places in the document or the cache."""
        if token_positions is None and segment_ids is None and (cache is None or not cache.ragged):
            held = 0 if cache is None else cache.longest
            if self.rope is not None:
                check_length(held + x.shape[-2], self.rope.max_seq_len)
            return torch.arange(held, held + x.shape[-2], device=x.device)
        if token_positions is not None:
            positions = token_positions
        elif cache is not None:
            # Padding has no place; where it is rotated to is never seen.
            positions = cache.places(x.shape[-2], real).clamp_min(0)
        else:
            assert segment_ids is not None
            positions = document_positions(segment_ids)
        if self.rope is not None:
            check_positions(positions, self.rope.max_seq_len)
        return positions

    def _with_cache(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        segment_ids: Tensor | None,
        cache: LayerCache,
        real: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, bool]:
        """The keys and values to attend to, who may attend to which, and whether that still has to be made causal."""
        if mask is not None:  # before anything is written
            check_mask(mask, (*q.shape[:-1], cache.longest_after(q.shape[-2], real, exact=True)))
        # Not where it would be compiled for the first chunk and again for the others.
        first = not torch.compiler.is_compiling() and cache.longest == 0 and not cache.ragged and real is None
        places = cache.places(q.shape[-2], real)
        k, v, key_places = cache.append(k, v, real, exact=mask is not None)
        if segment_ids is not None:
            cache.keep_document(segment_ids)
        if first:  # as without a cache
            return k, v, mask, True
        allowed = self._allowed(places, key_places, k.shape[-2], cache)
        if mask is not None and key_places is not None:
            mask = columns_at(mask, key_places)
        if mask is not None and allowed is not None:
            allowed = mask & allowed
        return k, v, mask if allowed is None else allowed, False

    def _allowed(self, places: Tensor, key_places: Tensor | None, kv_seq: int, cache: LayerCache) -> Tensor | None:
        """Who may attend to whom by place: (q, kv), (batch, 1, q, kv), or None where all may."""
        if key_places is None and not cache.ragged:
            # The size is not compared with the window while compiling: the code would have to be compiled again.
            all_seen = self.window is None or (not torch.compiler.is_compiling() and kv_seq <= self.window)
            if places.shape[-1] == 1 and all_seen:
                return None
            return causal_mask(places.shape[-1], kv_seq, window=self.window, device=places.device)
        if key_places is None:
            key_places = torch.arange(kv_seq, device=places.device)
        allowed = place_mask(places, key_places, window=self.window)
        return allowed.unsqueeze(1) if allowed.ndim == 3 else allowed

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
        if cache.slots < cache.max_seq_len and (self.window is None or self.window > (cache.window or 0)):
            raise ConfigError(
                f"this cache remembers a window of {cache.window} places, but this attention has window={self.window}; "
                "make a cache for this model."
            )
        if segment_ids is not None:
            cache.check_document(segment_ids)
