"""The block of families whose attention and feed-forward run in parallel on one norm (Command R, some StableLM).

Source: Wang and Komatsuzaki 2021 (GPT-J).
"""

from collections.abc import Callable

from torch import Tensor

from .block import FamilyBlock


class ParallelBlock(FamilyBlock):
    """x + attention(norm(x)) + feed-forward(norm(x))."""

    norms = ("norm1",)

    def add(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """Both sublayers, added in one line."""
        normed = self.norm1(x)
        return x + self.added(attend(normed)) + self.added(self.ffn(normed))
