"""The block of families that norm before each sublayer, with other parts or multipliers (Granite, Gemma, GLM)."""

from collections.abc import Callable

from torch import Tensor

from .block import FamilyBlock


class PreNormBlock(FamilyBlock):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    norms = ("norm1", "norm2")

    def add(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """The two lines of the block."""
        x = x + self.added(attend(self.norm1(x)))
        return x + self.added(self.ffn(self.norm2(x)))
