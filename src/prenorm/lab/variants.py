"""Blocks that differ from the blessed ones in one thing, to be measured against them."""

from jaxtyping import Bool, Float
from torch import Tensor

from ..blocks.encoder import TransformerEncoderBlock


class PostNormEncoderBlock(TransformerEncoderBlock):
    """`TransformerEncoderBlock` with its norms on the residual path, after each sum, as the paper of 2017 has them.

    BERT's layer has the same numbers, with eps=1e-12 (its code drops nothing after the GELU).
    Sources: Vaswani et al. 2017, arXiv:1706.03762; Devlin et al. 2018, arXiv:1810.04805.
    """

    def forward(  # type: ignore[override]  # packed documents are not a part of the comparison
        self, x: Float[Tensor, "*batch seq d_model"], mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"] | None = None
    ) -> Float[Tensor, "*batch seq d_model"]:
        """norm(x + attention(x)), then norm(x + feed-forward(x))."""
        x = self.norm1(x + self.dropout(self.attn(x, mask=mask)))
        return self.norm2(x + self.dropout(self.ffn(x)))
