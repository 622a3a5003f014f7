"""The block of families that norm a sublayer's output (OLMo 2, EXAONE 4). Source: OLMo 2, arXiv:2501.00656."""

from collections.abc import Callable

from torch import Tensor

from .block import FamilyBlock


class PostNormBlock(FamilyBlock):
    """x + norm(attention(x)), then x + norm(feed-forward(x)): the residual path is not normalised here either."""

    norms = ("post_norm1", "post_norm2")

    def add(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """The two lines of the block."""
        x = x + self.added(self.post_norm1(attend(x)))
        return x + self.added(self.post_norm2(self.ffn(x)))
