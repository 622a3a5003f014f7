"""The classical pre-norm encoder block: LayerNorm, attention with biases, GELU."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..layers.attention import SelfAttention
from ..layers.dropout import Dropout
from ..layers.feedforward import FeedForward
from ..layers.layer_norm import LayerNorm


class TransformerEncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), as in `nn.TransformerEncoderLayer(norm_first=True)`.

    d_ff defaults to 4 * d_model. In training, `dropout` applies to attention weights, to the output of the GELU and to
    the output of each sublayer. causal=True needs no mask. Attention adds no positions; x must already contain them.
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
        self.attn = SelfAttention(
            d_model, num_heads, device=device, dtype=dtype, causal=causal, qkv_bias=True, o_bias=True, dropout=dropout
        )
        self.norm2 = LayerNorm(d_model, eps, device=device, dtype=dtype)
        self.ffn = FeedForward(d_model, 4 * d_model if d_ff is None else d_ff, dropout, device=device, dtype=dtype)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "*batch seq d_model"],
        mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"] | None = None,
        *,
        segment_ids: Int[Tensor, "*batch seq"] | None = None,
    ) -> Float[Tensor, "*batch seq d_model"]:
        """The block applied to x (..., seq, d_model), any leading dims; mask and segment_ids as in `TransformerBlock`.

        Raises ShapeError.
        """
        x = x + self.dropout(self.attn(self.norm1(x), mask=mask, segment_ids=segment_ids))
        return x + self.dropout(self.ffn(self.norm2(x)))
