"""Self-attention with the options of model families: partial rotation, wide qk-norms, another scale, soft caps."""

from typing import Any

import torch
from torch import Tensor

from ...family import Family
from ...layers.attention import SelfAttention
from ...layers.family_norm import PerHeadLayerNorm, family_norm
from ...layers.rope import RotaryEmbedding
from ...ops.attention import scaled_dot_product_attention
from ...ops.heads import split_heads
from ...ops.rope import rotate


class FamilyAttention(SelfAttention):
    """`SelfAttention` with the options of a family's record. rope: None for a layer without rotary positions."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        family: Family,
        rope: RotaryEmbedding | None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        qk_norm: bool = False,
        eps: float = 1e-6,
        **options: Any,
    ) -> None:
        super().__init__(d_model, num_heads, None, device, dtype, eps=eps, **options)
        self.rope, self.family = rope, family
        if qk_norm and family.per_head_qk_norm:
            sizes = (self.head_dim, eps)
            self.q_norm = PerHeadLayerNorm(self.num_heads, *sizes, device=device, dtype=dtype)  # type: ignore[assignment]
            self.k_norm = PerHeadLayerNorm(self.num_kv_heads, *sizes, device=device, dtype=dtype)  # type: ignore[assignment]
        elif qk_norm:
            of_queries, of_keys = (self.num_heads, self.num_kv_heads) if family.wide_qk_norm else (1, 1)
            self.q_norm = family_norm(family, of_queries * self.head_dim, eps, device=device, dtype=dtype)
            self.k_norm = family_norm(family, of_keys * self.head_dim, eps, device=device, dtype=dtype)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values; a scale of scores other than 1 / sqrt(head_dim) is folded into the queries.

        It is applied before any further rounding, and lets every attention kernel support any scale.
        """
        if self.family.wide_qk_norm and self.q_norm is not None and self.k_norm is not None:
            q, k, v = self.q_norm(self.q_proj(x)), self.k_norm(self.k_proj(x)), self.v_proj(x)
            q, k, v = (split_heads(one, self.head_dim) for one in (q, k, v))
        else:
            q, k, v = super().project(x)
        if self.family.clip_qkv is not None:
            limit = self.family.clip_qkv
            q, k, v = (one.clamp(-limit, limit) for one in (q, k, v))
        scale = self.family.attention_scale
        factor = 1.0 if scale is None else scale * self.head_dim**0.5
        return q if factor == 1 else q * factor, k, v

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries or keys, with the first `rotary_dim` features of each head rotated."""
        turned = 2 * cos.shape[-1]
        if turned == self.head_dim:
            return super().rotate(x, cos, sin)
        first = rotate(x[..., :turned], cos, sin, interleaved=self.rope.interleaved)  # type: ignore[union-attr]
        return torch.cat((first, x[..., turned:]), dim=-1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        """The attention output of each head, with the family's soft cap on the scores."""
        return scaled_dot_product_attention(q, k, v, mask, softcap=self.family.attention_softcap, **options)
