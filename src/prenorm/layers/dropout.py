"""The dropout layer."""

from jaxtyping import Float
from torch import Tensor, nn

from ..ops.dropout import dropout
from ..validation import check_dropout


class Dropout(nn.Module):
    """In training, zeroes numbers with probability p and scales the others by 1 / (1 - p); else it changes nothing."""

    def __init__(self, p: float) -> None:
        super().__init__()
        check_dropout(p)
        self.p = p

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop some of x, in training."""
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        """The probability, for print(model)."""
        return f"p={self.p}"
