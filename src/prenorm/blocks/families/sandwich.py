"""The block of families that norm before and after each sublayer (Gemma 2 and 3, GLM 4). Source: arXiv:2408.00118."""

from collections.abc import Callable

from torch import Tensor

from .block import FamilyBlock


class SandwichBlock(FamilyBlock):
    """x + norm(attention(norm(x))), then x + norm(feed-forward(norm(x)))."""

    norms = ("norm1", "post_norm1", "norm2", "post_norm2")

    def add(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """The two lines of the block."""
        x = x + self.added(self.post_norm1(attend(self.norm1(x))))
        return x + self.added(self.post_norm2(self.ffn(self.norm2(x))))
