"""The block of families whose attention and feed-forward stand side by side, each with a norm of its own (GPT-NeoX).

Source: Black et al. 2022, arXiv:2204.06745, section 2.1.
"""

from collections.abc import Callable

from torch import Tensor

from .block import FamilyBlock


class ParallelTwoNormsBlock(FamilyBlock):
    """x + attention(norm1(x)) + feed-forward(norm2(x))."""

    norms = ("norm1", "norm2")

    def add(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """The two sublayers, in one line."""
        return x + self.added(attend(self.norm1(x))) + self.added(self.ffn(self.norm2(x)))
